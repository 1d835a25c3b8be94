"""Lines of progress where there is no terminal: never more than an interval without one."""

import io
import logging
import sys
import time
from collections.abc import Iterator

import pytest

from med_sslal.logger import progress
from med_sslal.logger.logger import setup_logging
from med_sslal.logger.progress import Progress, track


@pytest.fixture(autouse=True)
def console() -> Iterator[None]:
    """A console as in a run; its handler goes with the test."""
    setup_logging(2)
    yield
    logger = logging.getLogger("med_sslal")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def test_one_clock_serves_many_short_loops(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is shorter than the interval: a clock of its own would never be due."""
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.05)
    for number in range(10):
        for _ in track(range(2), f"loop {number}", 2):
            time.sleep(0.01)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all("/2, " in line and line.endswith(" left") for line in lines)


def test_any_line_winds_the_clock(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.05)
    for _ in track(range(10), "loop", 10):
        time.sleep(0.01)
        logging.getLogger("med_sslal.x").info("another line")
    assert "loop" not in capsys.readouterr().out


def test_a_note_is_asked_for_when_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with Progress("loop", 2) as line:
        assert not line.due()
        monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 1e-9)
        assert line.due()


@pytest.mark.parametrize("quiet", ["verbosity 0", "show=False"])
def test_a_quiet_run_stays_quiet(
    quiet: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 1e-9)
    if quiet == "verbosity 0":
        setup_logging(0)
    with Progress("loop", 3, show=quiet != "show=False") as line:
        line.advance()
        assert not line.due()
    assert capsys.readouterr().out == ""


def test_a_line_comes_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python keeps back what goes into a pipe or a file."""
    raw = io.BytesIO()
    buffered = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdout", buffered)
    logging.getLogger("med_sslal.x").info("a line")
    assert raw.getvalue() == b"a line\n"
