"""A reader of JSON with comments that knows the line and column of everything it read.

Beyond JSON it allows `//` and `/* */` comments, trailing commas, and a backslash at a line's end as
white space. Inside strings nothing of this applies. Repeated keys, NaN and Infinity are refused.
"""

import bisect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from med_sslal.utils.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of a document down to a value."""

MAX_DEPTH = 50

_SPACE = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/|\\[ \t\r]*(?:\n|\Z))*", re.DOTALL)
_WORD = re.compile(r"[^\s,:{}\[\]\"/\\]+")
_SCALAR = re.compile(r"true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


@dataclass(frozen=True)
class Document:
    """A parsed file; places in it are (line, column), from 1 on."""

    value: Any  # Of a repeated key, the first one.
    keys: Mapping[KeyPath, tuple[int, int]]
    values: Mapping[KeyPath, tuple[int, int]]
    duplicates: tuple[tuple[KeyPath, tuple[int, int]], ...]  # Every repetition of a key.


def parse(text: str, source: str) -> Document:
    """Parse JSON with comments; a ConfigError about it starts with `source:line:column`."""
    parser = _Parser(text, source)
    value = parser.value(())
    if parser.peek():
        parser.fail(f"expected the end of the file, found {parser.found()}")
    return Document(value, parser.keys, parser.values, tuple(parser.duplicates))


def read(path: Path, what: str) -> Document:
    """Read a file whose content is an object; `what` it is stands in messages: "config".

    ConfigError where it cannot be read, is malformed (`path:line:column ...`) or something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the {what} {path} is not UTF-8 text: {error.reason}") from error
    document = parse(text, str(path))
    if not isinstance(document.value, dict):
        raise ConfigError(f'{path}:1:1 a {what} is an object, "{{...}}", at the top')
    return document


class _Parser:
    """One pass over the text by recursive descent; `at` is the offset of the next character."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source, self.at = text, source, 0
        self.line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self.keys: dict[KeyPath, tuple[int, int]] = {}
        self.values: dict[KeyPath, tuple[int, int]] = {}
        self.duplicates: list[tuple[KeyPath, tuple[int, int]]] = []

    def position(self, offset: int) -> tuple[int, int]:
        line = bisect.bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def fail(self, message: str, offset: int | None = None) -> NoReturn:
        line, column = self.position(self.at if offset is None else offset)
        raise ConfigError(f"{self.source}:{line}:{column} malformed JSON: {message}")

    def found(self) -> str:
        shown = self.word()[:20] or self.text[self.at : self.at + 1]
        return f"'{shown}'" if shown else "the end of the file"

    def word(self) -> str:
        match = _WORD.match(self.text, self.at)
        return match.group() if match else ""

    def peek(self) -> str:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        if self.text.startswith("/*", self.at):
            self.fail("this comment is never closed by '*/'")
        if self.text.startswith("\\", self.at):
            self.fail("a backslash outside a string may only stand at a line's end")
        return self.text[self.at : self.at + 1]

    def value(self, path: KeyPath) -> Any:
        first = self.peek()
        if len(path) > MAX_DEPTH:
            self.fail(f"nested deeper than {MAX_DEPTH} levels")
        self.values[path] = self.position(self.at)
        if first and first in "{[":
            return self.members(path, is_object=first == "{")
        return self.string() if first == '"' else self.scalar()

    def members(self, path: KeyPath, *, is_object: bool) -> Any:
        result: dict[str | int, Any] = {}
        closing = "}" if is_object else "]"
        self.at += 1
        while self.peek() != closing:
            place = self.position(self.at)
            name = self.key() if is_object else len(result)
            child = (*path, name)
            if name in result:
                self.duplicates.append((child, place))
                kept = self.keys.copy(), self.values.copy()
                self.value(child)
                self.keys, self.values = kept
            else:
                if is_object:
                    self.keys[child] = place
                result[name] = self.value(child)
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != closing:
                self.fail(f'expected "," or "{closing}", found {self.found()}')
        self.at += 1
        return result if is_object else list(result.values())

    def key(self) -> str:
        if self.peek() != '"':
            self.fail(f'expected a key in double quotes or "}}", found {self.found()}')
        key = self.string()
        if self.peek() != ":":
            self.fail(f'expected ":" after the key "{key}", found {self.found()}')
        self.at += 1
        return key

    def string(self) -> str:
        start = self.at
        try:
            value, self.at = json.JSONDecoder().raw_decode(self.text, start)
            value.encode()
        except json.JSONDecodeError as error:
            self.fail(f"{error.msg[0].lower()}{error.msg[1:]}".removesuffix(" at"), error.pos)
        except UnicodeEncodeError:
            self.fail("half of a surrogate pair in a string", start)
        return value

    def scalar(self) -> Any:
        word = self.word()
        if len(word) > 400 or not _SCALAR.fullmatch(word):
            self.fail(f"expected a value, found {self.found()}")
        value = json.loads(word)
        # A whole number too: a key that takes any number gets it as a float.
        if value is not None and abs(value) > sys.float_info.max:
            self.fail(f"the number {word} is too large")
        self.at += len(word)
        return value
