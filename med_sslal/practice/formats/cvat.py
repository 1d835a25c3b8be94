"""CVAT: the labels of a task; its XML 1.1 for images."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from med_sslal.practice.answers import Answer, Query, QueryImage, State
from med_sslal.practice.formats.rows import Box, Rows, check_size, corners_inside, numbers
from med_sslal.utils.errors import ConfigError, DataError

VERSION = "1.1"
STATES: dict[str, State] = {"confirmed_empty": "confirmed_empty", "skipped": "skipped"}
CORNERS = ("xtl", "ytl", "xbr", "ybr")
_QUERY = re.compile(r"query_([0-9a-f]{12})")


def cvat_labels(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """The labels of a task: the classes, and two tags; ConfigError where a class is named so."""
    if taken := STATES.keys() & set(class_names):
        raise ConfigError(
            f"a class is named '{min(taken)}', which says in CVAT that an image has no object or "
            "is skipped: rename it in dataset.args.classes"
        )
    kinds = [*((name, "rectangle") for name in class_names), *((name, "tag") for name in STATES)]
    return [{"name": name, "type": kind, "attributes": []} for name, kind in kinds]


def read_cvat(path: Path, root: Element, query: Query) -> list[Answer]:
    """The answers in an export "CVAT for images 1.1"; ListedError of all rows that are wrong."""
    rows = Rows(path, query)
    version = root.findtext("version")
    if version != VERSION or root.find("track") is not None:
        raise DataError(
            f"{path} is of version '{version}', or of a video: export the task from CVAT as 'CVAT "
            f"for images {VERSION}'"
        )
    reader = (root.findtext("meta/*/assignee/username") or "").strip()
    with rows.noted():
        # Where the task was named after the query's folder.
        for name in root.iterfind("meta/*/name"):
            if told := _QUERY.search(name.text or ""):
                rows.check_query(told[1], f"{path}, task '{name.text}'")
    for position, element in enumerate(root.iterfind("image")):
        with rows.noted():
            _read_image(rows, element, f"{path}, image [{position}]", reader)
    return rows.finish()


def _read_image(rows: Rows, element: Element, where: str, reader: str) -> None:
    image = rows.found(rows.by_name, element.get("name"), where)
    where = f"{where} ('{element.get('name')}')"
    width, height = numbers(_floats(element, ("width", "height")), ("width", "height"), where)
    check_size((width, height), image, where)
    boxes: list[Box] = []
    said: set[State] = set()
    for number, mark in enumerate(element, start=1):
        with rows.noted():
            if mark.tag == "tag":
                said.add(_state(mark, where))
            else:
                said.add("labelled")
                boxes.append(_box(rows, mark, image, f"{where}, shape {number}"))
    if len(said) > 1:
        raise DataError(f"{where}: it is {' and '.join(sorted(said))} at once: leave one of them")
    # Without a mark nobody has said anything.
    for state in said:
        rows.add(image, state, boxes, reader)


def _state(mark: Element, where: str) -> State:
    label = mark.get("label", "")
    if label not in STATES:
        raise DataError(f"{where}: unknown tag '{label}'; the tags are {', '.join(STATES)}")
    return STATES[label]


def _box(rows: Rows, mark: Element, image: QueryImage, where: str) -> Box:
    if mark.tag != "box":
        raise DataError(f"{where}: it is of type '{mark.tag}': only rectangles are taken")
    label = rows.label(mark.get("label"), where)
    if mark.get("rotation") is not None and numbers(
        _floats(mark, ("rotation",)), ("rotation",), where
    ) != [0]:
        raise DataError(f"{where}: box is rotated: draw it upright")
    return corners_inside(numbers(_floats(mark, CORNERS), CORNERS, where), image, where), label


def _floats(element: Element, names: Sequence[str]) -> dict[str, Any]:
    """Attributes, as numbers where they are some."""
    found: dict[str, Any] = {}
    for name in names:
        text = element.get(name)
        try:
            found[name] = float(text or "")
        except ValueError:
            found[name] = text
    return found
