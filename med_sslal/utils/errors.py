"""Errors that a user can mend; the command line turns each into one sentence and exit code 2."""

from pathlib import Path


class UserError(Exception):
    """Base of everything the user can mend: the message says what, where and what to do."""


class ConfigError(UserError):
    """A config key, value or command-line argument is wrong."""


class DataError(UserError):
    """A data file is missing, damaged or does not say what it must; `path` is it, where told."""

    def __init__(self, text: str, path: Path | None = None) -> None:
        super().__init__(text)
        self.path = path


class CheckpointError(UserError):
    """A checkpoint is damaged, foreign or does not fit the run."""


class DeviceError(UserError):
    """A device was asked for that is not there."""


class LabelAccessError(RuntimeError):
    """Code asked an unlabelled sample for its label: a bug, never the user's fault."""
