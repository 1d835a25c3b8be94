"""ConfigParser: a config file, checked as a whole before anything is built."""

import copy
import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from med_sslal.config import jsonc
from med_sslal.config.jsonc import KeyPath
from med_sslal.config.overrides import Override
from med_sslal.config.signature import convert_arguments
from med_sslal.config.validate import Problem, Registries, Validator, apply_override
from med_sslal.utils.errors import ConfigError


class ConfigParser:
    """A checked config with all its defaults.

    Parsing has no side effects. `{"type", "args"}` sections are looked up in the registry of their
    own section, or as the dotted path of a user's class, and are built by `init_obj`. Ranges stand
    in the constructor's annotations; a class may besides have a classmethod `check_args(args)`,
    given its arguments with defaults, that returns (argument, sentence) for each problem between
    them; a path into an argument is a tuple, ("windows", 0, "low").

    Args:
        config: The config as given; not changed.
        registries: Section to (name to class), one for each of `arch`, `dataset`, `augmentation`,
            `optimizer`, `lr_scheduler`, `al_settings`, `ssl_settings` (exactly one class) and
            `metrics`; and `bases`, section to what a user's own class must extend, where that is
            fixed.
        overrides: Values that replace those of `config`; of two for one key the later counts.
        source: Where the config comes from, for messages.
        document: Lines and columns of `config`, where it was read from a file.

    Raises:
        ConfigError: Something is wrong; the text has one line per problem.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        registries: Registries,
        overrides: Iterable[Override] = (),
        *,
        source: str = "config",
        document: jsonc.Document | None = None,
    ) -> None:
        merged = copy.deepcopy(dict(config))
        places = Places(source, document)
        for override in overrides:
            places.replace(override)
            if problem := apply_override(merged, override):
                places.note(override.path, problem)
        validator = Validator(merged, registries)
        validator.run()
        places.refuse(validator.problems)
        self._resolved = validator.resolved
        self._types, self._defaults = validator.types, validator.defaults

    @classmethod
    def from_file(
        cls, path: Path | str, registries: Registries, overrides: Iterable[Override] = ()
    ) -> "ConfigParser":
        """Read and check a file of JSON with comments; messages name it as written here."""
        document = jsonc.read(Path(path), "config")
        return cls(document.value, registries, overrides, source=str(path), document=document)

    @property
    def resolved(self) -> dict[str, Any]:
        """A copy of the config with all defaults, as JSON holds it."""
        return copy.deepcopy(self._resolved)

    def __getitem__(self, name: str) -> Any:
        """A copy of a top-level key's value: `config["trainer"]["epochs"]`."""
        return copy.deepcopy(self._resolved[name])

    def get(self, dotted: str) -> Any:
        """A copy of the value at a dotted path, `trainer.epochs`; KeyError where there is none."""
        here: Any = self._resolved
        for name in dotted.split("."):
            here = here[name]
        return copy.deepcopy(here)

    def init_class(self, section: str) -> Any:
        """The class that a section names; a KeyError where the section is null."""
        return self._types[section]

    def init_obj(self, section: str, *args: Any, **kwargs: Any) -> Any:
        """Build what a section names, with further arguments that the program supplies.

        KeyError where the section is null; a ConfigError of the class names the section.
        """
        cls = self._types[section]
        own = convert_arguments(cls, self._resolved[section]["args"])
        try:
            return cls(*args, **own, **kwargs)
        except ConfigError as error:
            if f"{section}." in str(error):
                raise
            raise ConfigError(f"{section}.args: {error}") from error

    def _values(self) -> Iterator[tuple[str, Any]]:
        """Dotted path and value of every key and argument of a section that is there."""
        for name, value in self.resolved.items():
            if isinstance(value, dict):
                args = value.pop("args", {})
                yield from ((f"{name}.{member}", inner) for member, inner in value.items())
                yield from ((f"{name}.args.{member}", inner) for member, inner in args.items())
            # A section that is null has none.
            elif value is not None or name in self._defaults:
                yield name, value

    def differences(self) -> list[tuple[str, Any, Any]]:
        """Dotted path, value and default of every key that has a default and differs from it."""
        known, chosen = self._defaults, self.chosen()
        return [(path, value, known[path]) for path, value in chosen.items() if path in known]

    def chosen(self) -> dict[str, Any]:
        """Dotted path to value of every key that has no default or differs from it."""
        known, found = self._defaults, self._values()
        return {path: value for path, value in found if path not in known or value != known[path]}

    def digest(self) -> str:
        """Hex SHA-256 of the resolved config, whatever the order of its keys."""
        text = json.dumps(self._resolved, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


class Places:
    """Where each key and value of a config was written, and the problems found there.

    A place is (line, column, text); those of the command line come after those of the file
    `source`, which is parsed in `document` (None: there is no file).
    """

    def __init__(self, source: str, document: jsonc.Document | None) -> None:
        self._keys: dict[KeyPath, tuple[int, int, str]] = {}
        self._values: dict[KeyPath, tuple[int, int, str]] = {(): (0, 0, source)}
        self._problems: list[tuple[int, int, str]] = []
        if document is None:
            return
        for places, found in ((self._keys, document.keys), (self._values, document.values)):
            for at, (line, column) in found.items():
                places[at] = (line, column, f"{source}:{line}:{column}")
        for path, (line, column) in document.duplicates:
            text = f"{dotted(path)}: this key was given before; keep one of them"
            self._problems.append((line, column, f"{source}:{line}:{column} {text}"))

    def replace(self, override: Override) -> None:
        """Note that everything at and under a path comes from the command line."""
        size = len(override.path)
        place = (sys.maxsize, 0, override.source)
        for places in (self._keys, self._values):
            for path in [at for at in places if at[:size] == override.path]:
                del places[path]
            for depth in range(1, size + 1):
                places.setdefault(override.path[:depth], place)

    def note(self, path: KeyPath, message: str, at_key: bool = False) -> None:
        """Add a problem of a key or its value, at the nearest section that was written."""
        at, places = path, self._keys if at_key and path in self._keys else self._values
        while at not in places:
            at = at[:-1]
        line, column, text = places[at]
        self._problems.append((line, column, f"{text} {dotted(path)}: {message}"))

    def refuse(self, problems: Iterable[Problem]) -> None:
        """Raise a ConfigError of these problems and those noted, in the order of the file."""
        for problem in problems:
            self.note(*problem)
        if self._problems:
            told = sorted(self._problems, key=lambda problem: problem[:2])
            raise ConfigError("\n".join(text for *_, text in told))


def dotted(path: KeyPath) -> str:
    """A path as text: `metrics[0]`, `trainer.epochs`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")
