"""What of a config decides the numbers of a run, and its hash, the same on every machine."""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any

from med_sslal.config.parse_config import ConfigParser

PLACES = (
    "name", "n_gpu", "n_workers", "dataset.args.root", "dataset.args.cache*", "trainer.save_dir",
    "trainer.save_period", "trainer.checkpoint_seconds", "trainer.keep_*", "trainer.verbosity",
    "trainer.tensorboard",
)  # fmt: skip
"""Where and how fast a run goes and what it keeps, not what it computes."""

_WEIGHTS = "arch.args.pretrained"


def is_place(path: str) -> bool:
    """Whether a dotted key is one of PLACES."""
    return any(fnmatchcase(path, pattern) for pattern in PLACES)


def decisive(config: ConfigParser) -> dict[str, Any]:
    """Dotted key to value, as JSON holds it, of what decides the numbers of a run.

    That is every key without a default, or whose value is not its default, but PLACES: so a key
    that a later version adds changes nothing. 1 and 1.0 are equal. Of an absolute path, and of a
    weights file, the file's name counts, not where it lies or what is in it.
    """
    own = {path: value for path, value in config.chosen().items() if not is_place(path)}
    if isinstance(own.get(_WEIGHTS), str):
        own[_WEIGHTS] = PurePath(own[_WEIGHTS]).name
    return {path: _plain(value) for path, value in own.items()}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hex of 64 bits of SHA-256 over what `decisive` returned."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.startswith(("/", "~")):
        return PurePath(value).name
    return value
