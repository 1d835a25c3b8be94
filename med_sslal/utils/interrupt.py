"""Ctrl-C and SIGTERM end a run at the next safe point; a second Ctrl-C ends it at once."""

import signal
import threading
import time
from types import FrameType

# A cluster signals all processes of a job, and torchrun hands on what it got: within these seconds
# a second SIGTERM is the first one again.
SAME_SECONDS = 5.0


class Interrupted(Exception):
    """The run was asked to stop and has reached a safe point."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.exit_code = 128 + signal_number


class StopRequest:
    """While entered, remembers the first SIGINT or SIGTERM; `check` raises at a safe point."""

    def __init__(self) -> None:
        # The number of the signal that came.
        self.signal: int | None = None
        self._came = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        # Where signals arrive: in the main thread.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._came = number, now
        elif number != signal.SIGTERM or now - self._came > SAME_SECONDS:
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raise Interrupted where a stop was asked for."""
        if self.signal is not None:
            raise Interrupted(self.signal)
