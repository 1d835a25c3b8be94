"""A table with DeepLesion's columns: the four ends of two diameters (RECIST), or boxes.

Pixels count from 1, as in the data set.
"""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from med_sslal.practice.answers import Answer, Query, QueryImage
from med_sslal.practice.formats.rows import Box, Rows, Unmarked, corners_inside
from med_sslal.utils.errors import DataError

NAME, POINTS, BOX, CLASS = "File_name", "Measurement_coordinates", "Bounding_boxes", "Class"


def is_deeplesion(content: bytes) -> bool:
    """Whether a file begins with such a header."""
    return NAME.encode() in content.split(b"\n", 1)[0].replace(b"\0", b"")


def read_deeplesion(path: Path, text: str, query: Query, unmarked: Unmarked | None) -> list[Answer]:
    """The answers in a table with a line for each object; ListedError of all that are wrong.

    A box is what the line's Measurement_coordinates span (x and y of four points), or else its
    Bounding_boxes (x1, y1, x2, y2). Its class stands in a column Class, or is the query's only one.
    A line with neither is of an image without a box: `unmarked` says what that is.
    """
    rows = Rows(path, query)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    boxes: dict[str, list[Box]] = {}
    bare: set[str] = set()
    try:
        _check_columns(path, reader.fieldnames or (), query)
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            with rows.noted():
                name = row[NAME]
                if name not in rows.by_name:
                    raise DataError(f"{where}: image '{name}' is not in query {query.query_id}")
                image = rows.by_name[name]
                box = _box(rows, row, image, f"{where} ('{image.file_name}')")
                if box is None:
                    bare.add(image.file_name)
                else:
                    boxes.setdefault(image.file_name, []).append(box)
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error
    empty = sorted(bare - boxes.keys())
    for name in sorted(bare & boxes.keys()):
        with rows.noted():
            raise DataError(f"{path}: '{name}' has lines with a box and one without: drop that")
    rows.check_bare(empty, unmarked, "such a table")
    for name, own in boxes.items():
        rows.add(rows.by_name[name], "labelled", own)
    for name in empty:
        if unmarked == "empty":
            rows.add(rows.by_name[name], "confirmed_empty")
    return rows.finish()


def _check_columns(path: Path, names: object, query: Query) -> None:
    """Refuse a table whose boxes, or classes, nobody could tell."""
    found = set(names) if isinstance(names, list) else set()
    if NAME not in found or not {POINTS, BOX} & found:
        raise DataError(f"{path} needs the columns {NAME} and {POINTS} or {BOX}")
    if CLASS not in found and len(query.class_names) > 1:
        known = ", ".join(query.class_names)
        raise DataError(f"{path} needs a column {CLASS}: the query has several, {known}")


def _box(rows: Rows, row: Mapping[str, str | None], image: QueryImage, where: str) -> Box | None:
    """The box of a line in ORIGINAL pixels, 0-based; None where it has none."""
    column, count = (POINTS, 8) if (row.get(POINTS) or "").strip() else (BOX, 4)
    text = (row.get(column) or "").strip()
    if not text:
        return None
    try:
        values = [float(part) - 1 for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise DataError(f"{where}: {column} must hold {count} numbers, found '{text:.80}'")
    names = rows.query.class_names
    label = rows.label(row.get(CLASS) if CLASS in row else names[0], where)
    if column == POINTS:
        x, y = values[::2], values[1::2]
        values = [min(x), min(y), max(x), max(y)]
    return corners_inside(values, image, where), label
