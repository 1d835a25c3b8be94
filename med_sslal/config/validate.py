"""Check a whole config against schema, registries and signatures, and fill in the defaults."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from med_sslal.config.jsonc import KeyPath
from med_sslal.config.overrides import Override
from med_sslal.config.schema import SCHEMA, TypeSection
from med_sslal.config.signature import (
    load_class,
    load_metric,
    signature,
    wrong_arguments,
    wrong_members,
)
from med_sslal.config.torch_types import refused_by_torch
from med_sslal.config.values import Key
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import nearest, unknown

Registries = Mapping[str, Mapping[str, Any]]
# Something wrong at a path; true where the key is to blame and not its value.
Problem = tuple[KeyPath, str, bool]

_TYPED = {entry.path: entry for entry in SCHEMA if isinstance(entry, TypeSection)}


@dataclass
class Validator:
    """One pass over a config: `problems` is what is wrong, `resolved` the config with defaults.

    `types` maps a section to the class that it names, `defaults` a dotted path to its default.
    """

    config: Mapping[str, Any]
    registries: Registries
    problems: list[Problem] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)
    types: dict[str, type] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        """Check everything."""
        sections: dict[str, list[Key]] = {}
        for entry in SCHEMA:
            keys = [entry] if isinstance(entry, Key) else entry.keys(self.registries[entry.path])
            sections.setdefault(entry.path.split(".")[0], []).extend(keys)
        top, inner = [], {}
        for name, keys in sections.items():
            if keys[0].path == name:
                top.append(keys[0])
                continue
            nullable = name in _TYPED and _TYPED[name].nullable
            given = self.config.get(name, None if nullable else {})
            absent = nullable and given is None
            needed = [key.name for key in keys if key.required and not absent]
            if isinstance(given, dict) and (name in self.config or not needed):
                inner[name] = given
            kind: Any = dict[str, Any] | None if nullable else dict[str, Any]
            text = f"it needs {', '.join(needed)}"
            top.append(Key(name, kind, text, required=bool(needed), in_json=False, word="section"))
        self._members(self.config, top, (), self.resolved)
        for name, given in inner.items():
            resolved = self.resolved[name] = {}
            self._members(given, sections[name], (name,), resolved)
            if name in _TYPED:
                self._type_and_args(_TYPED[name], resolved)
        self._full_supervision()
        self._metrics()
        self._training_step()
        self._torch_pair()

    def add(self, path: KeyPath, message: str, at_key: bool = False) -> None:
        """Note a problem."""
        self.problems.append((path, message, at_key))

    def _members(
        self, given: Mapping[str, Any], keys: list[Key], at: KeyPath, resolved: dict[str, Any]
    ) -> None:
        """Check the members of the object at `at`, and put the good ones into `resolved`."""
        wrong = wrong_members(given, keys, _elsewhere)
        self.problems += [((*at, name), text, at_key) for name, text, at_key in wrong]
        names = [key.name for key in keys]
        # What a misspelt key means has no value yet.
        bad = {nearest(name, names) if at_key else name for name, _, at_key in wrong}
        for key in keys:
            if key.name not in bad:
                resolved[key.name] = copy.deepcopy(given.get(key.name, key.default))
            if not key.required and not key.word:
                self.defaults[key.path] = key.default

    def _type_and_args(self, section: TypeSection, resolved: dict[str, Any]) -> None:
        cls, args = self._class(section, resolved), resolved.get("args")
        if cls is None or args is None:
            return
        args_path: KeyPath = (section.path, "args")
        self.types[section.path] = cls
        for name, value in getattr(cls, "retired", {}).items():
            # Of a run of an older version.
            if args.get(name, ...) == value:
                del args[name]
        wrong = wrong_arguments(cls, args, section.provided)
        for name, message, at_key in wrong:
            self.add((*args_path, name), message, at_key)
        full = copy.deepcopy(args)
        for name, argument in signature(cls).arguments.items():
            if argument.in_json and name not in section.provided:
                full.setdefault(name, copy.deepcopy(argument.default))
                self.defaults[f"{section.path}.args.{name}"] = argument.default
        if section.nullable:
            self.defaults[f"{section.path}.type"] = None
        resolved["args"] = full if section.fill_args else args
        if hasattr(cls, "check_args") and not wrong:
            for at, sentence in cls.check_args(copy.deepcopy(full)):
                self.add((*args_path, *((at,) if isinstance(at, str) else at)), sentence)

    def _class(self, section: TypeSection, resolved: Mapping[str, Any]) -> type | None:
        """The class that the section names, or None after reporting why there is none."""
        registry = self.registries[section.path]
        if not section.has_type:
            return next(iter(registry.values()))
        path: KeyPath = (section.path, "type")
        name = resolved.get("type")
        if name is None:
            return None
        if name in registry:
            return registry[name]
        if "." not in name:
            self.add(path, f"{unknown('type', name, list(registry))}, or your own package.Class")
            return None
        return self._load(path, load_class, name)

    def _load(self, path: KeyPath, load: Callable[..., Any], dotted: str) -> Any:
        """What `load` gives of the user's own, or None after reporting why it cannot be had."""
        base = self.registries.get("bases", {}).get(str(path[0]))
        try:
            return load(dotted, *[base] if base else [])
        except ConfigError as error:
            self.add(path, str(error))
            return None

    def _full_supervision(self) -> None:
        """Refuse queries of a pool that is labelled as a whole from the start."""
        section = self.resolved.get("al_settings", {})
        if section.get("args", {}).get("init_num") == "all" and section.get("num_cycles"):
            text = f'found {section["num_cycles"]}, but init_num "all" leaves nothing to query'
            self.add(("al_settings", "num_cycles"), f"{text}: set it to 0")

    def _metrics(self) -> None:
        known = list(self.registries["metrics"])
        for index, name in enumerate(self.resolved.get("metrics", [])):
            if "." in name and name not in known:
                self._load(("metrics", index), load_metric, name)
            elif name not in known:
                problem = f"{unknown('metric', name, known)}, or your own module.function"
                self.add(("metrics", index), problem)

    def _training_step(self) -> None:
        """Load a user's training step, which is a whole recipe: nothing of another one stays."""
        name = self.resolved.get("trainer", {}).get("type")
        if name is None:
            return
        if self.resolved.get("ssl_settings", {}).get("include_pseudolabels"):
            two = "a training step of your own and ssl_settings.include_pseudolabels true"
            text = f"{two} are two recipes: set this one to null or that one to false"
            self.add(("trainer", "type"), text)
        if (step := self._load(("trainer", "type"), load_class, name)) is not None:
            self.types["trainer"] = step

    def _torch_pair(self) -> None:
        """Let torch check optimiser and scheduler, where nothing else is wrong with them."""
        sections = ("optimizer", "lr_scheduler")
        wrong = any(path[0] in sections for path, *_ in self.problems)
        if wrong or "optimizer" not in self.types:
            return
        args = [(self.resolved.get(name) or {}).get("args", {}) for name in sections]
        scheduler = self.types.get("lr_scheduler")
        for problem in refused_by_torch(self.types["optimizer"], args[0], scheduler, args[1]):
            self.add(*problem)
        name = scheduler and scheduler.__name__
        interval = name and self.resolved["lr_scheduler"]["interval"]
        if (name, interval) == ("ReduceLROnPlateau", "step"):
            text = 'ReduceLROnPlateau follows the validation: set it to "epoch"'
            self.add(("lr_scheduler", "interval"), text)
        if (name, interval) == ("ConstantThenCosine", "epoch"):
            text = 'ConstantThenCosine counts the steps of the training: set it to "step"'
            self.add(("lr_scheduler", "interval"), text)


def apply_override(config: dict[str, Any], override: Override) -> str | None:
    """Put a value into `config` (changed in place), making absent sections on the way.

    Returns a sentence where a part of the path is a value and no section.
    """
    here = config
    for depth, name in enumerate(override.path[:-1], start=1):
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            owner = ".".join(override.path[:depth])
            return f"unknown key; '{owner}' is a value, not a section"
    here[override.path[-1]] = copy.deepcopy(override.value)
    return None


def _elsewhere(name: str) -> str | None:
    """Where else a key of exactly this name belongs, quoted."""
    for entry in SCHEMA:
        if isinstance(entry, Key) and entry.name == name:
            return f"'{entry.path}'" if "." in entry.path else f"'{name}' at the top level"
    return None
