import json
from typing import Any

import pytest

from med_sslal.config.jsonc import parse
from med_sslal.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '{"a": "// no /* comment */ \\\\"}', {"a": "// no /* comment */ \\"}, id="str"
        ),
        pytest.param('{"a": [1, 2,],}', {"a": [1, 2]}, id="trailing commas"),
        pytest.param('{"a": [1, \\\n2]}', {"a": [1, 2]}, id="backslash"),
        pytest.param('{"a": 1\\ \t\r\n}', {"a": 1}, id="backslash, spaces, CRLF"),
        pytest.param('{"a": 5// x\n}//end', {"a": 5}, id="comment touches value"),
        pytest.param('/**/{"a"/* x */:/* y */-1.5e3}', {"a": -1500.0}, id="block comments"),
        pytest.param('{"a": [], "b": {}, "c": [null, false]}', None, id="plain JSON"),
    ],
)
def test_reader_takes(text: str, expected: Any) -> None:
    assert parse(text, "x").value == (json.loads(text) if expected is None else expected)


def test_what_stands_in_a_repeated_value_is_no_repetition() -> None:
    found = parse('{"a": {"b": 1, "c": 0}, "a": {"b": 2, "b": 3}}', "x")
    assert found.value == {"a": {"b": 1, "c": 0}}
    assert found.duplicates == ((("a",), (1, 25)), (("a", "b"), (1, 39)))
    assert found.values["a", "b"] == (1, 13)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        pytest.param('{\n  "a": 1\n  "b": 2\n}', "3:3", 'expected "," or "}"', id="comma"),
        pytest.param('{"a" 1}', "1:6", 'expected ":"', id="colon"),
        pytest.param('{"a": 1', "1:8", "the end of the file", id="unclosed"),
        pytest.param("{a: 1}", "1:2", "a key in double quotes", id="bare key"),
        pytest.param('{"a": NaN}', "1:7", "expected a value, found 'NaN'", id="NaN"),
        pytest.param('{"a": -Infinity}', "1:7", "expected a value", id="Infinity"),
        pytest.param('{"a": 1e999}', "1:7", "too large", id="overflow"),
        pytest.param('{"a": 01}', "1:7", "expected a value", id="leading zero"),
        pytest.param('{"a": "x\n"}', "1:9", "control character", id="line end in string"),
        pytest.param('{"a": 1 \\ 2}', "1:9", "line's end", id="backslash inside a line"),
        pytest.param('{"a": 1} /* x', "1:10", "never closed", id="open comment"),
        pytest.param('{"a": 1} 2', "1:10", "end of the file", id="rest"),
        pytest.param('{"a": [,]}', "1:8", "expected a value", id="lone comma"),
        pytest.param('{"a": "\\ud800"}', "1:7", "surrogate", id="surrogate"),
        pytest.param("[" * 100, "1:52", "deeper", id="depth"),
        pytest.param("", "1:1", "expected a value", id="empty"),
    ],
)
def test_reader_refuses_at_line_and_column(text: str, place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.json")
    assert str(caught.value).startswith(f"c.json:{place} malformed JSON")
    assert words in str(caught.value)
