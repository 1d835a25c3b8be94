import subprocess
import sys
import time
from pathlib import Path

import pytest

from med_sslal.cli import args
from med_sslal.config.overrides import Override

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("parser", ["train_parser", "test_parser"])
def test_help_is_quick_and_needs_no_torch(parser: str) -> None:
    code = (
        f"import sys; from med_sslal.cli.args import {parser}; text = {parser}().format_help();"
        "print(text); sys.exit('torch' in sys.modules)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 1
    assert "examples:" in done.stdout and "--device" in done.stdout


def test_train_options_become_overrides() -> None:
    line = "-c x.json --lr 1e-3 --set a.b=c=d --set seed=1 --bs 8 -d 2,3 --run-id one --dry-run"
    parsed = args.parse_train_args(line.split())
    assert parsed.overrides == [
        Override("--lr", ("optimizer", "args", "lr"), 1e-3),
        Override("--set", ("a", "b"), "c=d"),
        Override("--set", ("seed",), 1),
        Override("--bs", ("batch_size",), 8),
    ]
    assert (parsed.config, parsed.device, parsed.run_id) == ("x.json", "2,3", "one")
    assert parsed.dry_run and not parsed.print_config and parsed.resume is None


def test_two_parses_share_nothing() -> None:
    args.parse_train_args(["-c", "x", "--set", "seed=1", "--lr", "1"])
    assert args.parse_train_args(["-c", "x"]).overrides == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--resume", "latest", "--set", "trainer.epochs=60"],
        ["--help-config"],
        ["-r", "x", "-d", "cpu"],
    ],
    ids=" ".join,
)
def test_train_accepts(argv: list[str]) -> None:
    args.parse_train_args(argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give one of -c FILE"),
        (["-c", "x", "-r", "y"], "give one of -c FILE"),
        (["-r", "x", "--init-from", "y"], "--init-from starts a new run"),
        (["-r", "x", "--run-id", "y"], "--run-id starts a new run"),
        (["-r", "x", "--dry-run"], "--dry-run tries a new run"),
        (["-c", "x", "--set", "epochs"], "argument --set: takes KEY=VALUE"),
        (["-c", "x", "-d", "gpu"], "takes cpu, cuda or GPU numbers"),
        (["-c", "x", "-d", "2,2"], "names a GPU twice"),
        (["-c", "x", "--run-id", "../y"], "allowed: string: a folder name"),
        (["-c", "x", "--run-id", "."], "allowed: string: a folder name"),
        (["-c", "x", "--print-config", "--dry-run"], "not allowed with"),
        (["-c", "x", "--conf", "y"], "unrecognized arguments"),
        (["--resum", "x"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_train_line_exits_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        args.parse_train_args(argv)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_test_options() -> None:
    parsed = args.test_parser().parse_args(["-r", "latest"])
    assert (parsed.resume, parsed.split, parsed.device) == ("latest", "test", None)
    for wrong in ([], ["-r", "x", "--split", "train"], ["-r", "x", "--dev", "cpu"]):
        with pytest.raises(SystemExit) as caught:
            args.test_parser().parse_args(wrong)
        assert caught.value.code == 2
