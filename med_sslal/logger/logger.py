"""Logging set-up: short lines on the console, everything in the run's train.log."""

import json
import logging
import logging.config
from importlib import resources
from pathlib import Path

from tqdm import tqdm

CONSOLE_LEVELS = {0: logging.WARNING, 1: logging.INFO, 2: logging.INFO}


class ConsoleHandler(logging.Handler):
    """Writes records to standard output without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        tqdm.write(text)


def setup_logging(verbosity: int) -> None:
    """Configure the program's loggers from logger_config.json.

    Args:
        verbosity: 0 shows warnings only, 1 and 2 show information too.
    """
    text = resources.files("med_sslal.logger").joinpath("logger_config.json").read_text()
    config = json.loads(text)
    config["handlers"]["console"]["level"] = CONSOLE_LEVELS[verbosity]
    logging.config.dictConfig(config)


def add_log_file(path: Path) -> logging.Handler:
    """Append everything from DEBUG on to `path`; the caller closes it with `remove_log_file`."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setLevel(logging.DEBUG)
    handler.setFormatter(
        logging.Formatter(
            "%(asctime)s %(levelname)-7s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"
        )
    )
    logging.getLogger("med_sslal").addHandler(handler)
    return handler


def remove_log_file(handler: logging.Handler) -> None:
    """Stop writing to the file of `add_log_file`."""
    logging.getLogger("med_sslal").removeHandler(handler)
    handler.close()
