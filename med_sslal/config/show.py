"""The texts of `--print-config` and `--help-config`."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.schema import SCHEMA, TypeSection
from med_sslal.config.signature import signature
from med_sslal.config.validate import Registries
from med_sslal.config.values import Key, describe, show

_WIDTH = 100


def print_config(config: ConfigParser) -> str:
    """The resolved config as JSON that is a config file again; comments name the defaults left."""
    defaults = {path: default for path, _, default in config.differences()}
    lines = _object_lines(config.resolved, "", 1, defaults)
    return "\n".join(["{", *lines, "}", ""])


def _object_lines(
    values: Mapping[str, Any], prefix: str, depth: int, differences: Mapping[str, Any]
) -> Iterator[str]:
    margin = "    " * depth
    for index, (name, value) in enumerate(values.items()):
        path = f"{prefix}{name}"
        comma = "," if index < len(values) - 1 else ""
        note = f"  // default {show(differences[path])}" if path in differences else ""
        if isinstance(value, dict) and value:
            yield f"{margin}{json.dumps(name)}: {{{note}"
            yield from _object_lines(value, f"{path}.", depth + 1, differences)
            yield f"{margin}}}{comma}"
        else:
            yield f"{margin}{json.dumps(name)}: {show(value)}{comma}{note}"


def help_config(registries: Registries) -> str:
    """Every key with its type, default and meaning, and every registered type's arguments."""
    lines = [
        "JSON; // comments, trailing commas and a backslash at a line's end are allowed.",
        'A "type" is one of those listed, or package.module.Class for a class of your own.',
        "Any key can be set on the command line: --set trainer.epochs=3",
        "",
    ]
    for entry in SCHEMA:
        if isinstance(entry, TypeSection):
            lines += _section_lines(entry, registries[entry.path])
            continue
        if entry.path == "metrics":
            names = ", ".join(registries["metrics"])
            known = f"{entry.meaning}; known: {names}, or your own as module.function"
            entry = replace(entry, meaning=known)
        lines += entry_lines(entry)
    return "\n".join([*lines, ""])


def _section_lines(section: TypeSection, registry: Mapping[str, type]) -> list[str]:
    lines = []
    if section.has_type:
        lines += entry_lines(replace(section.keys()[0], meaning=section.meaning))
    for name, cls in registry.items():
        title = f"{section.path}.args" + (f" of {name}" if section.has_type else "")
        known = signature(cls).arguments
        arguments = [key for name, key in known.items() if name not in section.provided]
        lines.append(f"  {title}:" + ("" if arguments else " none"))
        for key in arguments:
            if not section.fill_args:
                # Of a foreign docstring, which may run over a paragraph, the start.
                start = re.sub(r"\s*\(?[Dd]efault:.*", "", key.meaning).split(". ")[0]
                key = replace(key, meaning=start.removesuffix("."))
            lines += entry_lines(key, 4)
    return lines


def entry_lines(key: Key, margin: int = 0) -> list[str]:
    """A key or argument in a help text, its meaning under it, `margin` blanks before each line."""
    indent = " " * (margin + 4)
    wrapped = textwrap.wrap(key.meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [f"{' ' * margin}{key.path} ({describe(key.annotation)}; {key.hint})", *wrapped]
