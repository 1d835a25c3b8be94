"""Sentences about wrong names, with the right one that was probably meant."""

import difflib
from collections.abc import Iterable, Mapping


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """The allowed name that looks most like `name`, or None when none does."""
    by_lower = {option.lower(): option for option in allowed}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[close[0]] if close else None


def unknown(what: str, name: str, allowed: Iterable[str]) -> str:
    """A sentence about a wrong name: the nearest right one, and all of them."""
    close = nearest(name, allowed)
    hint = f" Did you mean '{close}'?" if close else ""
    return f"unknown {what} '{name}'.{hint} Allowed: {', '.join(allowed)}"


def unknown_key(name: str, allowed: Mapping[str, str]) -> tuple[str, str | None]:
    """A sentence about a wrong key, and the key of `allowed` (to a word each) probably meant."""
    close = nearest(name, allowed)
    if close is None:
        return f"unknown key; allowed: {', '.join(allowed) or 'none'}", None
    return f"unknown key. Did you mean '{close}' ({allowed[close]})?", close
