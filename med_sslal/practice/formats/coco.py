"""Plain COCO, which knows boxes and nothing of the state of an image without any."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_sslal.eval.coco_utils import categories, coco_detections
from med_sslal.practice.answers import Answer, Query, QueryImage
from med_sslal.practice.formats.rows import (
    Box,
    Rows,
    Unmarked,
    check_size,
    corners_inside,
    entries,
    numbers,
)
from med_sslal.utils.errors import DataError

SIDES = ("x", "y", "width", "height")


def coco_document(query: Query, scores: Mapping[str, float | None]) -> dict[str, Any]:
    """The query in COCO's form, with the criterion's value of each image by its id."""
    return {
        "info": {"description": f"query {query.query_id}", "query_id": query.query_id},
        "images": [
            {
                "id": image.rank,
                "file_name": image.file_name,
                "width": image.width,
                "height": image.height,
                "sha256": image.sha256,
                "al_score": scores[image.image_id],
            }
            for image in query.images
        ],
        "annotations": _annotations(query),
        "categories": [
            {**category, "supercategory": ""} for category in categories(query.class_names)
        ],
    }


def _annotations(query: Query) -> list[dict[str, Any]]:
    found = [row for image in query.images for row in coco_detections(image.rank, image.shown)]
    return [
        {
            "id": number,
            **row,
            "area": row["bbox"][2] * row["bbox"][3],
            "iscrowd": 0,
            # CVAT takes a rectangle for one only where this is empty.
            "segmentation": [],
            "attributes": {"origin": "prediction", "score": row["score"]},
        }
        for number, row in enumerate(found, start=1)
    ]


def read_coco(
    path: Path, document: Mapping[str, Any], query: Query, unmarked: Unmarked | None
) -> list[Answer]:
    """The answers in a COCO file; ListedError of all rows that are wrong.

    Images without a box are what `unmarked` says: confirmed empty or pending. DataError where there
    are some and it says nothing, and for the file that went out, unchanged.
    """
    rows = Rows(path, query)
    lists = {key: list(entries(document, key, str(path))) for key in ("images", "annotations")}
    names = _names(path, document)
    if lists["annotations"] and lists["annotations"] == _annotations(query):
        raise DataError(f"{path} holds the predictions that went out, and nobody has changed any")
    info = document.get("info")
    if isinstance(info, dict) and "query_id" in info:
        rows.check_query(info["query_id"], str(path))
    images: dict[int, QueryImage] = {}
    numbered: set[int] = set()
    for position, entry in enumerate(lists["images"]):
        where, number = f"{path}, images[{position}]", entry.get("id")
        with rows.noted():
            if type(number) is not int or number in numbered:
                raise DataError(f"{where}: it needs a whole number of its own as id")
            numbered.add(number)
            images[number] = _image(rows, entry, where)
    boxes: dict[int, list[Box]] = {}
    for position, entry in enumerate(lists["annotations"]):
        where, number = f"{path}, annotations[{position}]", entry.get("image_id")
        with rows.noted():
            if type(number) is not int or number not in numbered:
                raise DataError(f"{where}: there is no image with id {number}")
            found = boxes.setdefault(number, [])
            # What is wrong with its image is told of that.
            if number in images:
                image = images[number]
                found.append(_box(rows, entry, image, names, f"{where} ('{image.file_name}')"))
    bare = [image.file_name for number, image in images.items() if number not in boxes]
    rows.check_bare(bare, unmarked, "COCO")
    for number, image in images.items():
        if number in boxes:
            rows.add(image, "labelled", boxes[number])
        elif unmarked == "empty":
            rows.add(image, "confirmed_empty")
    return rows.finish()


def _names(path: Path, document: Mapping[str, Any]) -> dict[int, str]:
    """Names of the file's categories by their ids."""
    names: dict[int, str] = {}
    for entry in entries(document, "categories", str(path)):
        number, name = entry.get("id"), entry.get("name")
        if type(number) is not int or not isinstance(name, str) or number in names:
            raise DataError(f"{path}: a category needs an id of its own and a name, found {entry}")
        names[number] = name
    return names


def _image(rows: Rows, entry: Mapping[str, Any], where: str) -> QueryImage:
    image = rows.found(rows.by_name, entry.get("file_name"), where)
    where = f"{where} ('{image.file_name}')"
    check_size((entry.get("width"), entry.get("height")), image, where)
    if entry.get("sha256", image.sha256) != image.sha256:
        raise DataError(f"{where}: sha256 differs: it is about another picture than the query's")
    return image


def _box(
    rows: Rows,
    entry: Mapping[str, Any],
    image: QueryImage,
    names: Mapping[int, str],
    where: str,
) -> Box:
    number, attributes, box = entry.get("category_id"), entry.get("attributes"), entry.get("bbox")
    name = names.get(number) if type(number) is int else None
    label = rows.label(number if name is None else name, where)
    if isinstance(attributes, dict) and attributes.get("rotation", 0) != 0:
        raise DataError(f"{where}: box is rotated: draw it upright")
    if entry.get("iscrowd", 0) != 0:
        raise DataError(f"{where}: it is a crowd: draw a box for each object")
    if not isinstance(box, list) or len(box) != len(SIDES):
        raise DataError(f"{where}: bbox must be [x, y, width, height], found {box}")
    x, y, width, height = numbers(dict(zip(SIDES, box, strict=True)), SIDES, where)
    return corners_inside([x, y, x + width, y + height], image, where), label
