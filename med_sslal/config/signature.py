"""What a class's constructor takes: names, types, defaults and meanings."""

import importlib
import inspect
import re
import textwrap
import typing
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from med_sslal.config.values import Key, as_json, read
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown_key

# Names that modules import for type checkers only, and without which their hints cannot be read.
_HINT_NAMES = {name: getattr(abc, name) for name in abc.__all__}


@dataclass(frozen=True)
class Signature:
    """Arguments by name, and whether others are taken too (`**kwargs` up to the last base)."""

    arguments: Mapping[str, Key]
    is_open: bool


def signature(cls: type) -> Signature:
    """Read the constructor of `cls`; where it hands on `**kwargs`, its bases' as well."""
    arguments: dict[str, Key] = {}
    meanings: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        for text in (owner.__doc__, vars(owner).get("__init__", owner).__doc__):
            meanings |= docstring_arguments(text)
    for owner in cls.__mro__:
        init = vars(owner).get("__init__")
        if init is None:
            continue
        if owner is object:
            return Signature(arguments, False)
        parameters = list(inspect.signature(init).parameters.values())[1:]
        hints = _hints(init)
        for parameter in parameters:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            name, required = parameter.name, parameter.default is parameter.empty
            try:
                default, in_json = as_json(parameter.default), True
            except (TypeError, ValueError):
                default, in_json = None, False
            hint, meaning = hints.get(name, Any), meanings.get(name, "")
            arguments.setdefault(name, Key(name, hint, meaning, default, required, in_json))
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return Signature(arguments, False)
    return Signature(arguments, True)


class WrongArgument(NamedTuple):
    """Something wrong with an argument; `at_key` where its name is to blame and not its value."""

    name: str
    message: str
    at_key: bool = False


def wrong_arguments(
    cls: type, args: Mapping[str, Any], provided: Collection[str] = ()
) -> list[WrongArgument]:
    """Hold arguments from JSON against the constructor of `cls`: names, presence, types and ranges.

    `provided` are arguments that the program supplies itself.
    """
    known = signature(cls)
    text = "the program supplies '{}' itself; remove it here"
    taken = [WrongArgument(name, text.format(name)) for name in args if name in provided]
    own = {name: value for name, value in args.items() if name not in provided}
    keys = [key for name, key in known.arguments.items() if name not in provided]
    return taken + wrong_members(own, keys, owner=cls.__name__, is_open=known.is_open)


def wrong_members(
    given: Mapping[str, Any],
    keys: Iterable[Key],
    elsewhere: Callable[[str], str | None] = lambda name: None,
    *,
    owner: str = "",
    is_open: bool = False,
) -> list[WrongArgument]:
    """Hold the members of an object against its `keys`: names, presence and values.

    Other names are taken too where it `is_open`, and `elsewhere` says where else one belongs; the
    members may be arguments of a class, the `owner`.
    """
    known = {key.name: key for key in keys}
    hints = {name: key.hint for name, key in known.items()}
    problems, meant = [], set()
    for name in [] if is_open else [name for name in given if name not in known]:
        if place := elsewhere(name):
            message = f"unknown key. Did you mean {place}?"
        else:
            message, close = unknown_key(name, hints)
            meant.add(close)
        problems.append(WrongArgument(name, message, at_key=True))
    for name, key in known.items():
        wrong = None
        if name in given:
            wrong = key.problem(given[name])
        elif key.required and name not in meant:
            missing = f"required key is missing ({key.meaning})"
            wrong = f"required by {owner}, but missing" if owner else missing
        if wrong:
            problems.append(WrongArgument(name, wrong))
    return problems


def _hints(init: Any) -> dict[str, Any]:
    """The evaluated annotations of a constructor; {} where a name in them is not to be found."""
    try:
        return typing.get_type_hints(init, localns=_HINT_NAMES, include_extras=True)
    except (NameError, TypeError):
        return {}


def convert_arguments(cls: type, args: Mapping[str, Any]) -> dict[str, Any]:
    """Turn checked JSON values into what the constructor asks for (tuples, paths).

    What equals the default is left to the constructor, whose default may be of a richer type.
    """
    known, result = signature(cls).arguments, {}
    for name, value in args.items():
        argument = known.get(name)
        if argument is None:
            result[name] = value
        elif not (argument.in_json and value == argument.default):
            result[name] = read(value, argument.annotation)
    return result


def docstring_arguments(doc: str | None) -> dict[str, str]:
    """Names and meanings from the "Args:" part of a Google docstring."""
    part = r"^(?:Args|Attributes): *\n((?: +.*\n| *\n)*)"
    match = re.search(part, inspect.cleandoc(doc or "") + "\n", re.M)
    entry = r"^\**(\w+)(?: *\([^)]*\))?: *(.*(?:\n(?!\**\w+(?: *\([^)]*\))?:).*)*)"
    entries = re.findall(entry, textwrap.dedent(match.group(1)), re.M) if match else ()
    return {name: " ".join(text.split()) for name, text in entries}


def load_class(dotted: str, base: type | None = None) -> type:
    """Import a user's class by its dotted path, `package.module.Class`.

    ConfigError where it cannot be imported, is no class, or no subclass of `base`.
    """
    cls: type = _load(dotted, "class", lambda found: isinstance(found, type))
    if base is not None and not issubclass(cls, base):
        raise ConfigError(
            f"{dotted} must be a subclass of {base.__module__}.{base.__name__}, which it is not"
        )
    return cls


def load_metric(dotted: str) -> Callable[..., Any]:
    """Import a user's metric by its dotted path, `module.function`.

    Raises:
        ConfigError: It cannot be imported, or not be called as
            metric(predictions, annotations, infos, class_names, draws=..., seed=...).
    """
    metric: Callable[..., Any] = _load(dotted, "function", callable)
    try:
        inspect.signature(metric).bind(None, None, None, None, draws=0, seed=0)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"'{dotted}' is no metric: it must be a function called as metric(predictions, "
            f"annotations, infos, class_names, draws=..., seed=...), but {error}"
        ) from error
    return metric


def _load(dotted: str, kind: str, is_right: Callable[[Any], bool]) -> Any:
    module_name, _, name = dotted.rpartition(".")
    try:
        found = vars(importlib.import_module(module_name)).get(name)
    # Whatever a user's module raises while it is imported is for the user to mend.
    except Exception as error:
        raise ConfigError(
            f"cannot import '{module_name}' for '{dotted}': {type(error).__name__}: {error}"
        ) from error
    if not is_right(found):
        raise ConfigError(f"module '{module_name}' has no {kind} '{name}'")
    return found
