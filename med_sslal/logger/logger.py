"""Logging set-up: short lines on the console, all levels in the run's train.log."""

import logging
import sys
import time
from pathlib import Path

from tqdm import tqdm

from med_sslal.utils.errors import UserError
from med_sslal.utils.util import take_alone


class ConsoleHandler(logging.Handler):
    """Writes records to standard output at once, without tearing a progress bar apart."""

    def __init__(self) -> None:
        super().__init__()
        # When it wrote last.
        self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        tqdm.write(text)
        sys.stdout.flush()
        self.last = time.monotonic()


def console_silence() -> float:
    """Seconds since a line came to the console; 0 where none is shown that is no warning."""
    for handler in logging.getLogger("med_sslal").handlers:
        if isinstance(handler, ConsoleHandler) and handler.level <= logging.INFO:
            return time.monotonic() - handler.last
    return 0.0


class LogFile(logging.FileHandler):
    """A log file that a full disk cannot end a run with: it tells of the first line it lost."""

    _told = False

    def handleError(self, record: logging.LogRecord | None = None) -> None:
        """Tell of the error that is being handled."""
        if not self._told:
            tqdm.write(f"warning: cannot write all of {self.baseFilename}: {sys.exc_info()[1]}")
        self._told = True

    def close(self) -> None:
        """Stop writing to the file; closing it writes what is left."""
        logging.getLogger("med_sslal").removeHandler(self)
        try:
            super().close()
        except OSError:
            self.handleError()


def setup_logging(verbosity: int, *, leads: bool = True) -> None:
    """Configure the program's loggers.

    `verbosity` 0 shows warnings only, 1 and 2 show information too; a process that does not lead
    logs nothing but errors.
    """
    console, program = ConsoleHandler(), logging.getLogger("med_sslal")
    console.setLevel(logging.INFO if verbosity else logging.WARNING)
    program.handlers = [console]
    program.setLevel(logging.DEBUG if leads else logging.ERROR)


def add_log_file(path: Path) -> logging.Handler:
    """Append everything from DEBUG on to `path`, until the caller closes what is returned.

    Until then no other process can open it so: two would write each other's files of a run.
    UserError where it cannot be opened, or another process has it.
    """
    try:
        handler = LogFile(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    assert handler.stream is not None
    busy = f"another process is at work in {path.parent}: wait for it, or stop it first"
    take_alone(handler.stream, path, busy)
    handler.setLevel(logging.DEBUG)
    text = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(text, datefmt="%Y-%m-%d %H:%M:%S"))
    logging.getLogger("med_sslal").addHandler(handler)
    return handler
