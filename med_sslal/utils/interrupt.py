"""Ctrl-C and SIGTERM end a run at the next safe point; a second Ctrl-C ends it at once."""

import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TypeVar

T = TypeVar("T")

# A cluster signals all processes of a job, and torchrun hands on what it got: within these seconds
# a second SIGTERM is the first one again.
SAME_SECONDS = 5.0


class Interrupted(Exception):
    """The run was asked to stop and has reached a safe point."""

    def __init__(self, signal_number: int) -> None:
        """Remember the signal."""
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """While entered, remembers the first SIGINT or SIGTERM; `check` raises at a safe point."""

    def __init__(self) -> None:
        """No request yet."""
        self._signal: int | None = None
        self._came = 0.0
        self._before: dict[int, object] = {}

    @property
    def signal(self) -> int | None:
        """The number of the signal that came, None before any."""
        return self._signal

    def __enter__(self) -> "StopRequest":
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Put the old handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._came = number, now
        elif number != signal.SIGTERM or now - self._came > SAME_SECONDS:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise where a stop was asked for.

        Raises:
            Interrupted: A signal came.
        """
        if self._signal is not None:
            raise Interrupted(self._signal)

    def watch(self, steps: Iterable[T]) -> Iterator[T]:
        """Yield from `steps`, checking before each."""
        for step in steps:
            self.check()
            yield step
