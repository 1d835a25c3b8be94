"""What a person's tool has exported: of which format it is, and the answers in it."""

import json
from pathlib import Path
from typing import Any

from med_sslal.practice.answers import Answer, Query
from med_sslal.practice.formats.coco import read_coco
from med_sslal.practice.formats.cvat import read_cvat
from med_sslal.practice.formats.deeplesion import is_deeplesion, read_deeplesion
from med_sslal.practice.formats.label_studio import read_label_studio
from med_sslal.practice.formats.rows import Unmarked
from med_sslal.utils.errors import DataError
from med_sslal.utils.xml_files import parse_xml

_EXPORT = (
    "export all tasks as JSON (/api/projects/ID/export?exportType=JSON&download_all_tasks=true)"
)
# Marks of byte order, zeros of UTF-16, and white space: what may come before the first character.
_BEFORE = b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n"


def read_returned(
    path: Path,
    query: Query,
    *,
    unmarked: Unmarked | None = None,
    reader: str | None = None,
    max_bytes: int = 500_000_000,
) -> list[Answer]:
    """The answers in a file, told apart by what is in it.

    Of Label Studio, of CVAT, in plain COCO, or a table with DeepLesion's columns.

    Images that are pending have none.

    Args:
        path: The file, which nothing is written to.
        query: What was asked.
        unmarked: What an image without a box is in COCO and tables, which do not tell.
        reader: Whose annotation counts where a task of Label Studio has several, or "newest".
        max_bytes: Larger files are refused.

    Raises:
        DataError: It cannot be read, or is of no such format; as a ListedError all rows that are
            wrong.
    """
    content = _content(path, max_bytes)
    start = content.lstrip(_BEFORE)[:1]
    if start == b"<":
        root = parse_xml(content, path)
        if root.tag != "annotations":
            raise DataError(f"{path} is no XML of CVAT: it is about '{root.tag}'")
        _refuse(unmarked, path, "CVAT")
        return read_cvat(path, root, query)
    if start not in (b"[", b"{"):
        if is_deeplesion(content):
            return read_deeplesion(path, _text(path, content), query, unmarked)
        more = ": unpack it, and give the file in it" if content.startswith(b"PK") else ""
        raise DataError(
            f"{path} is neither JSON of Label Studio or COCO, nor XML of CVAT, nor a table with "
            f"DeepLesion's columns{more}"
        )
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    if isinstance(document, list):
        _refuse_min(path, document)
        _refuse(unmarked, path, "Label Studio")
        return read_label_studio(path, document, query, reader)
    info = document.get("info")
    if isinstance(info, dict) and info.get("contributor") == "Label Studio":
        raise DataError(
            f"{path} is Label Studio's COCO, which leaves skipped images out and gives those that "
            f"nobody has looked at as empty: {_EXPORT}"
        )
    return read_coco(path, document, query, unmarked)


def _content(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"{path} is no file: name what the annotation tool has exported")
        size = path.stat().st_size
        if size > max_bytes:
            raise DataError(
                f"{path} has {size} bytes, and at most {max_bytes} are read: export it without "
                "pictures in it"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _text(path: Path, content: bytes) -> str:
    """Of UTF-8, or of UTF-16 where the file begins with its mark."""
    code = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(code)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: {error}") from error


def _refuse_min(path: Path, tasks: list[Any]) -> None:
    """Refuse Label Studio's JSON_MIN: its tasks have the fields of `data` beside the others."""
    flat = [each for each in tasks if isinstance(each, dict) and "data" not in each]
    if any("annotation_id" in each or "annotator" in each for each in flat):
        raise DataError(
            f"{path} is Label Studio's JSON_MIN, which leaves skipped images out as it does those "
            f"that nobody has looked at: {_EXPORT}"
        )


def _refuse(unmarked: Unmarked | None, path: Path, tool: str) -> None:
    if unmarked is not None:
        raise DataError(
            f"{path} is of {tool}, which tells what an image without a box is: leave --unmarked out"
        )
