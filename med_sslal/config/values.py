"""Is a JSON value what a type annotation asks for, its range included? And words for both.

Ranges are annotated_types' in `Annotated`: Ge, Gt, Le, Lt, Interval, MinLen, MaxLen, and Predicate
with a `doc` that says in words what it asks for.
"""

import json
import operator
import os
import sys
import types
from collections import abc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, Predicate

from med_sslal.utils.names import nearest

# What JSON gives for a type, and the word for it.
_JSON: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "integer"),
    float: ((float, int), "number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "string"),
    Path: ((str,), "path"),
    None: ((type(None),), "null"),
    type(None): ((type(None),), "null"),
    **dict.fromkeys((dict, abc.Mapping, abc.MutableMapping), ((dict,), "object")),
    **dict.fromkeys((list, tuple, abc.Sequence, abc.Iterable, abc.Collection), ((list,), "list")),
}
# The number in a rule, what it asks, and words for it.
_RULES: dict[type, tuple[str, Callable[[Any, Any], bool], str]] = {
    Ge: ("ge", operator.ge, "{} or more"),
    Gt: ("gt", operator.gt, "more than {}"),
    Le: ("le", operator.le, "at most {}"),
    Lt: ("lt", operator.lt, "less than {}"),
    MinLen: ("min_length", lambda value, size: len(value) >= size, "{} or more of them"),
    MaxLen: ("max_length", lambda value, size: len(value) <= size, "at most {} of them"),
}
_UNIONS = (Union, types.UnionType)
# What lies beyond cannot be counted, seeded or indexed with; inf and NaN are not in JSON.
_LARGEST = {int: 2**63 - 1, float: sys.float_info.max}


@dataclass(frozen=True)
class Key:
    """One key of a config, or one argument of a constructor."""

    path: str  # Dotted path, or the argument's name.
    annotation: Any  # Type and range of its value; Any where nothing is said.
    meaning: str  # What it does; "" where nothing says it.
    default: Any = None  # Value where it is left out, as JSON holds it; None where JSON cannot.
    required: bool = False  # It must be there; `default` means nothing then.
    in_json: bool = True  # JSON can hold its default.
    word: str = ""  # What stands for its default in a message.

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.split(".")[-1]

    @property
    def hint(self) -> str:
        """`required` or its default, for a message."""
        return self.word or ("required" if self.required else f"default {show(self.default)}")

    def problem(self, value: Any) -> str | None:
        """A sentence about a value that may not stand here; a default of None allows null."""
        as_default = not self.required and self.in_json and self.default is None is value
        return None if as_default or fits(value, self.annotation) else refusal(value, self)


def read(value: Any, annotation: Any) -> Any:
    """Turn a JSON value into what `annotation` asks for: list to tuple, string to Path.

    `10` is a float too, but `"10"` is no int and `true` is not 1. An annotation about which nothing
    can be said from JSON (Any, a class, a protocol) takes all as it is. ValueError where the value
    is of another type, or out of range.
    """
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        result = read(value, inner[0])
        if not all(_holds(rule, value) for rule in _rules(inner)):
            raise ValueError
        return result
    if origin in _UNIONS:
        options = [option for option in inner if _is_known(option)]
        # One of the value's own type is first.
        for option in sorted(options, key=lambda option: _kind(option) is not type(value)):
            with suppress(ValueError):
                return read(value, option)
        if options:
            raise ValueError
        return value
    if origin is Literal and (type(value), value) not in [(type(one), one) for one in inner]:
        raise ValueError
    if origin not in _JSON:
        return value
    if type(value) not in _JSON[origin][0] or (isinstance(value, str) and "\0" in value):
        raise ValueError
    if origin in _LARGEST and not abs(value) <= _LARGEST[origin]:
        raise ValueError
    if isinstance(value, dict):
        return {key: read(item, inner[1] if inner else Any) for key, item in value.items()}
    if isinstance(value, list):
        each = [inner[0] if inner else Any] * len(value)
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            each = list(inner)
        items = [read(item, kind) for item, kind in zip(value, each, strict=True)]
        return tuple(items) if origin is tuple else items
    return origin(value) if origin in (float, Path) else value


def fits(value: Any, annotation: Any) -> bool:
    """Whether a JSON value may be given where `annotation` stands."""
    try:
        read(value, annotation)
    except ValueError:
        return False
    return True


def _kind(annotation: Any) -> Any:
    """An annotation without ranges and inner types."""
    origin = get_origin(annotation) or annotation
    return _kind(get_args(annotation)[0]) if origin is Annotated else origin


def _is_known(annotation: Any) -> bool:
    """Whether `annotation` says something about a JSON value (Tensor, say, does not)."""
    return _kind(annotation) in (Literal, *_UNIONS, *_JSON)


def _rules(inner: tuple[Any, ...]) -> Iterator[Any]:
    for rule in inner[1:]:
        yield from rule if isinstance(rule, GroupedMetadata) else (rule,)


def _holds(rule: Any, value: Any) -> bool:
    """Whether a value fulfils a rule; null is exempt, and so is what the rule cannot be asked."""
    with suppress(TypeError):
        if value is not None and isinstance(rule, Predicate):
            return bool(rule.func(value))
        if value is not None and type(rule) in _RULES:
            name, holds, _ = _RULES[type(rule)]
            return bool(holds(value, getattr(rule, name)))
    return True


def as_json(value: Any) -> Any:
    """A default value as JSON holds it: tuples as lists, paths as strings.

    ValueError or TypeError where JSON cannot hold it (NaN, say, or its type).
    """

    def plain(value: Any) -> Any:
        return dict(value) if isinstance(value, Mapping) else os.fspath(value)

    return json.loads(json.dumps(value, default=plain, allow_nan=False))


def describe(annotation: Any) -> str:
    """What an annotation allows, in words: `integer, 1 or more, or null`."""
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        rules = _rule_words(list(_rules(inner)))
        link = ": " if inner[0] is str else ", "
        return link.join([describe(inner[0]), *([rules] if rules else [])])
    if origin is Literal:
        return " or ".join(show(option) for option in inner)
    if origin in _UNIONS:
        known = [option for option in inner if _is_known(option)] or inner
        parts = list(dict.fromkeys(describe(option) for option in known))
        return (", or " if any("," in part for part in parts) else " or ").join(parts)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        kinds = dict.fromkeys(describe(option) for option in inner)
        return f"list of {len(inner)} ({', '.join(kinds)})"
    word = _JSON[origin][1] if origin in _JSON else "any value"
    each = inner[0 if word == "list" else 1] if inner and word in ("list", "object") else Any
    return word if each is Any else f"{word} of ({describe(each)})"


def _rule_words(rules: list[Any]) -> str:
    """The rules of an Annotated in words: `0 to 1`, `more than 0`."""
    words = []
    if [type(rule) for rule in rules[:2]] == [Ge, Le]:
        words, rules = [f"{show(rules[0].ge)} to {show(rules[1].le)}"], rules[2:]
    for rule in rules:
        if type(rule) in _RULES:
            name, _, text = _RULES[type(rule)]
            words.append(text.format(show(getattr(rule, name))))
        elif text := getattr(rule, "documentation", ""):
            words.append(text)
    return " and ".join(words)


def show(value: Any) -> str:
    """A value as JSON on one line; what JSON cannot hold as Python shows it."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def found(value: Any) -> str:
    """A value and its kind, for `found ...` in a message, cut to a readable length."""
    if isinstance(value, dict):
        return "an object"
    text = show(value)
    if type(value) is int and len(text) > 18:
        return f"a number of {len(text)} digits"
    kind = "the string " if isinstance(value, str) else "the list " * isinstance(value, list)
    return kind + (text if len(text) <= 60 else text[:57] + "...")


def refusal(value: Any, key: Key) -> str:
    """A sentence about a wrong value of a key."""
    close = nearest(value, _words(key.annotation)) if isinstance(value, str) else None
    hint = f". Did you mean {show(close)}? Allowed:" if close else "; allowed:"
    return f"found {found(value)}{hint} {describe(key.annotation)}"


def _words(annotation: Any) -> list[str]:
    """The strings of the Literals in an annotation."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [option for option in inner if isinstance(option, str)]
    return [word for part in inner for word in _words(part)]
