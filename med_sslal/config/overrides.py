"""Values from the command line that replace those of the config file."""

import json
from dataclasses import dataclass
from typing import Any

from med_sslal.utils.errors import ConfigError


@dataclass(frozen=True)
class Override:
    """One replaced value."""

    source: str  # The option that it comes from, for messages: `--set`.
    path: tuple[str, ...]  # Keys from the top of the config down to the value.
    value: Any

    @property
    def text(self) -> str:
        """`KEY=VALUE` as `--set` takes it."""
        return f"{'.'.join(self.path)}={json.dumps(self.value)}"


def parse_set(text: str) -> Override:
    """Read the `a.b=value` of a `--set`: the first `=` splits, nothing is evaluated.

    The value is JSON where it can be read as such, else a string; ConfigError without path or `=`.
    """
    dotted, equals, written = text.partition("=")
    path = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(path):
        raise ConfigError(f"takes KEY=VALUE such as trainer.epochs=3, found '{text}'")
    return Override("--set", path, json_or_text(written))


def json_or_text(written: str) -> Any:
    """A value of the command line: as JSON where it can be read as such, else the text itself."""
    try:
        value = json.loads(written)
        # NaN and what is too large for a float are no JSON.
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return written
    return value
