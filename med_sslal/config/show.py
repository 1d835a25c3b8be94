"""The texts of `--print-config` and `--help-config`."""

import json
import re
import textwrap
from collections.abc import Mapping
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
    lines: list[str] = []
    _object_lines(config.resolved, "", 1, defaults, lines)
    return "\n".join(["{", *lines, "}", ""])


def _object_lines(
    values: Mapping[str, Any],
    prefix: str,
    depth: int,
    differences: Mapping[str, Any],
    lines: list[str],
) -> None:
    """Append the lines of an object's members; lists stay on one line."""
    margin = "    " * depth
    for index, (name, value) in enumerate(values.items()):
        path = f"{prefix}{name}"
        comma = "," if index < len(values) - 1 else ""
        note = f"  // default {show(differences[path])}" if path in differences else ""
        if isinstance(value, dict) and value:
            lines.append(f"{margin}{json.dumps(name)}: {{{note}")
            _object_lines(value, f"{path}.", depth + 1, differences, lines)
            lines.append(f"{margin}}}{comma}")
        else:
            lines.append(f"{margin}{json.dumps(name)}: {show(value)}{comma}{note}")


def help_config(registries: Registries) -> str:
    """Every key with its type, default and meaning, and every registered type's arguments.

    Args:
        registries: Section to (name to class), as ConfigParser takes them.
    """
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
        meaning = entry.meaning
        if entry.path == "metrics":
            names = ", ".join(registries["metrics"])
            meaning += f"; known: {names}, or your own as module.function"
        lines += entry_lines(entry.path, describe(entry.annotation), entry.hint, meaning, 0)
    return "\n".join([*lines, ""])


def _section_lines(section: TypeSection, registry: Mapping[str, type]) -> list[str]:
    """The lines of a section: itself, its types and their arguments."""
    lines = []
    if section.has_type:
        kind = "string" + (", or null in place of the section" if section.nullable else "")
        lines += entry_lines(
            f"{section.path}.type", kind, section.keys()[0].hint, section.meaning, 0
        )
    for name, cls in registry.items():
        title = f"{section.path}.args" + (f" of {name}" if section.has_type else "")
        arguments = [
            argument
            for argument in signature(cls).arguments.values()
            if argument.name not in section.provided
        ]
        lines.append(f"  {title}:" + ("" if arguments else " none"))
        for argument in arguments:
            kind = describe(argument.annotation)
            meaning = argument.meaning if section.fill_args else _first_sentence(argument)
            lines += entry_lines(argument.name, kind, argument.hint, meaning, 4)
    return lines


def _first_sentence(argument: Key) -> str:
    """The start of a foreign docstring, which may run over a paragraph, without its default."""
    return re.sub(r"\s*\(?[Dd]efault:.*", "", argument.meaning).split(". ")[0].removesuffix(".")


def entry_lines(name: str, kind: str, hint: str, meaning: str, margin: int) -> list[str]:
    """One entry of a help text, its meaning wrapped under it.

    Args:
        name: Key or argument.
        kind: What it allows, in words.
        hint: `required` or its default.
        meaning: What it does.
        margin: Blanks before each line.
    """
    head = f"{' ' * margin}{name} ({kind}; {hint})"
    indent = " " * (margin + 4)
    return [
        head,
        *textwrap.wrap(meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent),
    ]
