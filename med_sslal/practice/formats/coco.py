"""Plain COCO, which knows boxes and nothing of the state of an image without any."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_sslal.base.types import ImageInfo
from med_sslal.data.coco import load_coco
from med_sslal.eval.coco_utils import categories, coco_detections
from med_sslal.practice.answers import Answer, Query
from med_sslal.practice.formats.rows import Box, Rows, Unmarked, check_size, corners_inside
from med_sslal.utils.errors import DataError


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
    annotations = document.get("annotations")
    if annotations and annotations == _annotations(query):
        raise DataError(f"{path} holds the predictions that went out, and nobody has changed any")
    info = document.get("info")
    if isinstance(info, dict) and "query_id" in info:
        rows.check_query(info["query_id"], str(path))

    def find(entry: dict[str, Any], name: str, where: str) -> ImageInfo:
        image = rows.found(rows.by_name, name, where)
        where = f"{where} ('{image.file_name}')"
        check_size((entry.get("width"), entry.get("height")), image, where)
        if entry.get("sha256", image.sha256) != image.sha256:
            raise DataError(
                f"{where}: sha256 differs: it is about another picture than the query's"
            )
        size = (image.height, image.width)
        return ImageInfo(image.image_id, image.image_id, image.file_name, size)

    _, infos, records = load_coco(path, document, find, rows.bad)
    boxes: dict[str, list[Box]] = {image_id: [] for image_id in infos}
    for image_id, own in records.items():
        for record in own:
            where = f"{record.where} ('{infos[image_id].file_name}')"
            with rows.noted():
                if record.ignore:
                    raise DataError(f"{where}: it is a crowd: draw a box for each object")
                corners = corners_inside(record.box, rows.by_id[image_id], where)
                boxes[image_id].append((corners, rows.label(record.name, where)))
    # A box that was refused is told of, and does not leave its image bare.
    if not rows.bad.problems:
        rows.check_bare(
            [infos[name].file_name for name in infos if not boxes[name]], unmarked, "COCO"
        )
    for image_id, found in boxes.items():
        if found or unmarked == "empty":
            rows.add(rows.by_id[image_id], "labelled" if found else "confirmed_empty", found)
    return rows.finish()
