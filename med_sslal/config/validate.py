"""Check a whole config against schema, registries and signatures, and fill in the defaults."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from med_sslal.config.jsonc import KeyPath
from med_sslal.config.overrides import Override
from med_sslal.config.schema import SCHEMA, TypeSection
from med_sslal.config.signature import load_class, load_metric, signature, wrong_arguments
from med_sslal.config.torch_types import refused_by_torch
from med_sslal.config.values import Key, found
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown, unknown_key

Registries = Mapping[str, Mapping[str, Any]]

NAMES_OF_SECTIONS = tuple(dict.fromkeys(entry.path.split(".")[0] for entry in SCHEMA))


class Problem(NamedTuple):
    """Something wrong at a path; `at_key` where the key is to blame and not its value."""

    path: KeyPath
    message: str
    at_key: bool = False


@dataclass
class Validator:
    """One pass over a config; `problems` collects what is wrong, `resolved` what it means.

    Attributes:
        config: The config as given.
        registries: Section to (name to class); `metrics` holds the names of metrics.
        problems: Everything that is wrong.
        resolved: The config with its defaults.
        types: Section to class, where the section has one and it was found.
    """

    config: Mapping[str, Any]
    registries: Registries
    problems: list[Problem] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)
    types: dict[str, type] = field(default_factory=dict)
    _meant: set[KeyPath] = field(default_factory=set)

    def run(self) -> None:
        """Check everything."""
        top = {entry.path: entry.hint for entry in SCHEMA if isinstance(entry, Key)}
        self._names(self.config, (), {name: top.get(name, "section") for name in NAMES_OF_SECTIONS})
        for name in NAMES_OF_SECTIONS:
            members = [entry for entry in SCHEMA if entry.path.split(".")[0] == name]
            if len(members) == 1 and isinstance(members[0], Key):
                self._key(members[0], self.config, self.resolved)
            else:
                self._section(name, members)
        self._full_supervision()
        self._metrics()
        self._torch_pair()

    def add(self, path: KeyPath, message: str) -> None:
        """Note a problem of a value."""
        self.problems.append(Problem(path, message))

    def _names(self, given: Mapping[str, Any], at: KeyPath, allowed: Mapping[str, str]) -> None:
        """Report the keys of `given` that are not in `allowed` (name to a word about it)."""
        for name in given:
            if name in allowed:
                continue
            elsewhere = _elsewhere(name)
            if elsewhere is not None:
                message = f"unknown key. Did you mean {elsewhere}?"
            else:
                message, close = unknown_key(name, allowed)
                if close is not None:
                    self._meant.add((*at, close))
            self.problems.append(Problem((*at, name), message, at_key=True))

    def _key(self, key: Key, given: Mapping[str, Any], resolved: dict[str, Any]) -> None:
        """Check one key of a section."""
        path, name = tuple(key.path.split(".")), key.name
        if name not in given:
            if not key.required:
                resolved[name] = copy.deepcopy(key.default)
            elif path not in self._meant:
                self.add(path, f"required key is missing ({key.meaning})")
            return
        if message := key.problem(given[name]):
            self.add(path, message)
        else:
            resolved[name] = copy.deepcopy(given[name])

    def _section(self, name: str, members: list[Key | TypeSection]) -> None:
        """Check a section of keys, of type and args, or of both."""
        typed = next((entry for entry in members if isinstance(entry, TypeSection)), None)
        nullable = typed is not None and typed.nullable
        given = self.config.get(name, None if nullable else {})
        if given is None and nullable:
            self.resolved[name] = None
            return
        if not isinstance(given, dict):
            self.add((name,), f"found {found(given)}; allowed: object" + " or null" * nullable)
            return
        keys = [key for entry in members for key in _keys(entry)]
        required = [key.name for key in keys if key.required]
        if name not in self.config and required:
            if (name,) not in self._meant:
                self.add((name,), f"required section is missing; it needs {', '.join(required)}")
            return
        hints = {key.name: key.meaning if key.name == "args" else key.hint for key in keys}
        self._names(given, (name,), hints)
        resolved = self.resolved.setdefault(name, {})
        for entry in members:
            if isinstance(entry, Key):
                self._key(entry, given, resolved)
            else:
                self._type_and_args(entry, given, resolved)

    def _type_and_args(
        self, section: TypeSection, given: Mapping[str, Any], resolved: dict[str, Any]
    ) -> None:
        """Check `type` against the registry and `args` against the signature."""
        cls = self._class(section, given, resolved)
        args_path: KeyPath = (section.path, "args")
        args = given.get("args", {})
        if not isinstance(args, dict):
            self.add(args_path, f"found {found(args)}; allowed: object of arguments")
        elif cls is not None and args_path not in self._meant:
            before = len(self.problems)
            self.types[section.path] = cls
            known = signature(cls)
            for name, message, at_key in wrong_arguments(cls, args, section.provided):
                self.problems.append(Problem((*args_path, name), message, at_key))
            full = copy.deepcopy(args)
            for name, argument in known.arguments.items():
                if argument.in_json and name not in section.provided:
                    full.setdefault(name, copy.deepcopy(argument.default))
            resolved["args"] = full if section.fill_args else copy.deepcopy(args)
            check = getattr(cls, "check_args", None)
            if check is not None and len(self.problems) == before:
                for at, sentence in check(copy.deepcopy(full)):
                    self.add((*args_path, *((at,) if isinstance(at, str) else at)), sentence)

    def _class(
        self, section: TypeSection, given: Mapping[str, Any], resolved: dict[str, Any]
    ) -> type | None:
        """The class that the section names, or None after reporting why there is none."""
        registry = self.registries[section.path]
        if not section.has_type:
            return next(iter(registry.values()))
        path: KeyPath = (section.path, "type")
        name = given.get("type", section.default_type)
        if "type" not in given and name is None:
            if path not in self._meant:
                self.add(path, f"required key is missing; allowed: {', '.join(registry)}")
            return None
        if not isinstance(name, str):
            self.add(path, f"found {found(name)}; allowed: string")
            return None
        resolved["type"] = name
        if name in registry:
            return registry[name]
        if "." not in name:
            self.add(path, f"{unknown('type', name, list(registry))}, or your own package.Class")
            return None
        try:
            return load_class(name, self.registries.get("bases", {}).get(section.path))
        except ConfigError as error:
            self.add(path, str(error))
            return None

    def _full_supervision(self) -> None:
        """Refuse queries of a pool that is labelled as a whole from the start."""
        section = self.resolved.get("al_settings", {})
        if section.get("args", {}).get("init_num") == "all" and section.get("num_cycles"):
            self.add(
                ("al_settings", "num_cycles"),
                f'found {section["num_cycles"]}, but init_num "all" leaves nothing to query: set '
                "it to 0",
            )

    def _metrics(self) -> None:
        """Check the names of metrics, and the functions that dotted paths lead to."""
        known = list(self.registries["metrics"])
        for index, name in enumerate(self.resolved.get("metrics", [])):
            if name in known:
                continue
            if "." not in name:
                problem = f"{unknown('metric', name, known)}, or your own module.function"
                self.add(("metrics", index), problem)
                continue
            try:
                load_metric(name)
            except ConfigError as error:
                self.add(("metrics", index), str(error))

    def _torch_pair(self) -> None:
        """Let torch check optimiser and scheduler, where nothing else is wrong with them."""
        sections = ("optimizer", "lr_scheduler")
        if (
            any(problem.path[0] in sections for problem in self.problems)
            or "optimizer" not in self.types
        ):
            return
        args = [(self.resolved.get(name) or {}).get("args", {}) for name in sections]
        scheduler = self.types.get("lr_scheduler")
        refused = refused_by_torch(self.types["optimizer"], args[0], scheduler, args[1])
        for path, sentence in refused:
            self.add(path, sentence)
        plateau = scheduler is not None and scheduler.__name__ == "ReduceLROnPlateau"
        if plateau and self.resolved["lr_scheduler"]["interval"] == "step":
            self.add(
                ("lr_scheduler", "interval"),
                'ReduceLROnPlateau follows the validation: set it to "epoch"',
            )


def apply_override(config: dict[str, Any], override: Override) -> Problem | None:
    """Put a value into `config` (changed in place), making absent sections on the way.

    Returns:
        A problem where a part of the path is a value and no section.
    """
    here = config
    for depth, name in enumerate(override.path[:-1], start=1):
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            owner = ".".join(override.path[:depth])
            return Problem(override.path, f"unknown key; '{owner}' is a value, not a section")
    here[override.path[-1]] = copy.deepcopy(override.value)
    return None


def _keys(entry: Key | TypeSection) -> tuple[Key, ...]:
    """The keys that an entry of the schema stands for."""
    return (entry,) if isinstance(entry, Key) else entry.keys


def _elsewhere(name: str) -> str | None:
    """Where else a key of exactly this name belongs, quoted."""
    for entry in SCHEMA:
        if isinstance(entry, Key) and entry.name == name:
            return f"'{entry.path}'" if "." in entry.path else f"'{name}' at the top level"
    return None
