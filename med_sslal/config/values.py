"""Is a JSON value what a type annotation asks for? And words for both."""

import difflib
import json
import math
import types
from collections import abc
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_WORDS: dict[Any, str] = {
    int: "integer",
    float: "number",
    bool: "true or false",
    str: "string",
    Path: "path",
    type(None): "null",
    dict: "object",
    list: "list",
    tuple: "list",
}
_LISTS = {list, tuple, abc.Sequence, abc.Iterable, abc.Collection}
_MAPPINGS = {dict, abc.Mapping, abc.MutableMapping}


def fits(value: Any, annotation: Any) -> bool:
    """Whether a JSON value may be given where `annotation` stands.

    `10` fits float, but `"10"` does not fit int and `true` is not 1. Lists fit tuples. An
    annotation about which nothing can be said from JSON (Any, a class, a protocol) fits all.
    """
    origin = get_origin(annotation) or annotation
    if origin is Literal:
        return any(
            type(value) is type(option) and value == option for option in get_args(annotation)
        )
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if _is_known(option)]
        return not options or any(fits(value, option) for option in options)
    if origin in _LISTS:
        return isinstance(value, list) and _items_fit(value, annotation)
    if origin in _MAPPINGS:
        inner = get_args(annotation)
        return isinstance(value, dict) and (
            not inner or all(fits(item, inner[1]) for item in value.values())
        )
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, Path):
        return isinstance(value, str)
    if annotation in (None, type(None)):
        return value is None
    return isinstance(value, bool) if annotation is bool else True


def _items_fit(value: list[Any], annotation: Any) -> bool:
    """Whether the items of a list fit the parameters of a list or tuple annotation."""
    inner = get_args(annotation)
    if get_origin(annotation) is tuple and inner[-1:] != (Ellipsis,):
        return len(value) == len(inner) and all(map(fits, value, inner))
    return not inner or all(fits(item, inner[0]) for item in value)


def _is_known(annotation: Any) -> bool:
    """Whether `annotation` says something about a JSON value (Tensor, say, does not)."""
    origin = get_origin(annotation) or annotation
    if annotation is None or origin in _LISTS or origin in _MAPPINGS or origin in _WORDS:
        return True
    return origin is Literal or not isinstance(origin, type)


def convert(value: Any, annotation: Any) -> Any:
    """Turn a JSON value into what the code asks for: list to tuple, string to Path.

    A value that does not fit (null for a default of None) stays as it is.
    """
    if not fits(value, annotation):
        return value
    origin = get_origin(annotation) or annotation
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if _is_known(option)]
        fitting = [option for option in options if fits(value, option)]
        exact = [option for option in fitting if option is type(value)]
        return convert(value, (exact or fitting)[0]) if fitting else value
    if origin in _LISTS and isinstance(value, list):
        inner = get_args(annotation)
        if origin is not tuple:
            return [convert(item, inner[0]) if inner else item for item in value]
        one_type = not inner or inner[-1] is Ellipsis
        each = [inner[0] if inner else Any] * len(value) if one_type else inner
        return tuple(map(convert, value, each))
    if origin in _MAPPINGS and get_args(annotation):
        return {key: convert(item, get_args(annotation)[1]) for key, item in value.items()}
    if annotation is float:
        return float(value)
    return Path(value) if annotation is Path else value


def is_jsonable(value: Any) -> bool:
    """Whether JSON can hold a default value (tuples as lists, paths as strings)."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) for key in value) and all(map(is_jsonable, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_jsonable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | Path)


def jsonable(value: Any) -> Any:
    """A default value for which `is_jsonable` holds, as JSON holds it."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def describe(annotation: Any) -> str:
    """What an annotation allows, in words: `integer or null`."""
    origin = get_origin(annotation) or annotation
    inner = get_args(annotation)
    if origin is Literal:
        return " or ".join(show(option) for option in inner)
    if origin in (Union, types.UnionType):
        known = [option for option in inner if _is_known(option)] or inner
        return " or ".join(dict.fromkeys(describe(option) for option in known))
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        kinds = dict.fromkeys(describe(option) for option in inner)
        return f"list of {len(inner)} ({', '.join(kinds)})"
    if origin in _LISTS:
        return f"list of ({describe(inner[0])})" if inner else "list"
    if origin in _MAPPINGS:
        return "object"
    if annotation is None:
        return "null"
    return _WORDS.get(annotation, "any value")


def show(value: Any) -> str:
    """A value as JSON on one line; what JSON cannot hold as Python shows it."""
    return json.dumps(value, ensure_ascii=False, default=repr)


def found(value: Any) -> str:
    """A value and its kind, for `found ...` in a message, cut to a readable length."""
    kinds = {str: "the string ", bool: "", dict: "an object", list: "the list "}
    if isinstance(value, dict):
        return kinds[dict]
    text = show(value)
    return kinds.get(type(value), "") + (text if len(text) <= 60 else text[:57] + "...")


def refusal(value: Any, annotation: Any, allowed: str) -> str:
    """A sentence about a wrong value; `allowed` says what it may be."""
    options = [option for option in _options(annotation) if isinstance(option, str)]
    close = nearest(value, options) if isinstance(value, str) else None
    hint = f". Did you mean {show(close)}? Allowed:" if close else "; allowed:"
    return f"found {found(value)}{hint} {allowed}"


def _options(annotation: Any) -> list[Any]:
    """The values that the Literals in an annotation list."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(inner)
    return [option for part in inner for option in _options(part)]


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that looks most like `name`, or None when none does."""
    by_lower = {option.lower(): option for option in allowed}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def unknown_key(name: str, allowed: Mapping[str, str]) -> tuple[str, str | None]:
    """A sentence about a wrong key, and the right one that was probably meant.

    Args:
        name: The key.
        allowed: Right keys, with a word about each.
    """
    close = nearest(name, allowed)
    if close is None:
        return f"unknown key; allowed: {', '.join(allowed) or 'none'}", None
    return f"unknown key. Did you mean '{close}' ({allowed[close]})?", close


def unknown(what: str, name: str, allowed: Sequence[str]) -> str:
    """A sentence about a wrong name: the nearest right one, and all of them."""
    close = nearest(name, allowed)
    hint = f" Did you mean '{close}'?" if close else ""
    return f"unknown {what} '{name}'.{hint} Allowed: {', '.join(allowed)}"
