"""Progress of a loop: one tqdm line on a terminal, elsewhere a plain line after 30 s of silence."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from med_sslal.logger.logger import console_silence

T = TypeVar("T")
PLAIN_INTERVAL_S = 30.0


def duration(seconds: float) -> str:
    """A short text: 42s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Counts the steps of one loop from `done` to `total`, and shows where it is.

    One clock serves all loops of a run, however short each is: it runs from the console's last
    line, whatever wrote that.
    """

    def __init__(self, description: str, total: int, *, done: int = 0, show: bool = True) -> None:
        self._description, self._total, self._done = description, total, done
        self._logger = logging.getLogger("med_sslal.progress")
        terminal = sys.stderr.isatty()
        self._plain = show and not terminal
        self._started, self._first = time.monotonic(), done
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=description,
            leave=False,
            disable=not (show and terminal),
            dynamic_ncols=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the line away."""
        self._bar.close()

    def due(self) -> bool:
        """Whether a note given to `advance` now would be shown (building one may cost)."""
        if self._plain:
            return console_silence() >= PLAIN_INTERVAL_S
        return not self._bar.disable

    def advance(self, note: str = "") -> None:
        """Count one step."""
        self._done += 1
        self._bar.update()
        if note:
            self._bar.set_postfix_str(note, refresh=False)
        if self._plain and console_silence() >= PLAIN_INTERVAL_S:
            per_step = (time.monotonic() - self._started) / max(self._done - self._first, 1)
            left = duration(per_step * (self._total - self._done))
            text = f"{self._description}: {self._done}/{self._total}, {left} left"
            self._logger.info("%s%s", text, f", {note}" if note else "")


def track(steps: Iterable[T], description: str, total: int, *, show: bool = True) -> Iterator[T]:
    """Yield from `steps` while showing the progress."""
    with Progress(description, total, show=show) as progress:
        for step in steps:
            yield step
            progress.advance()
