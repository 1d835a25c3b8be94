"""Predictions and labels in COCO's form, and predictions back from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from med_sslal.base.types import ImageInfo, Prediction
from med_sslal.eval.eval_utils import Columns
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import check_version

FORMAT_VERSION = 1


def to_coco_predictions(
    predictions: Mapping[str, Prediction],
    infos: Mapping[str, ImageInfo],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Predictions as a JSON object in COCO's form, ids from 1 in the order of the image ids.

    Returns:
        `format_version`, `images` {id, image_id, file_name}, `annotations` {image_id (the number),
        category_id, bbox [x, y, width, height], score} and `categories`.
    """
    ids = sorted(predictions)
    annotations = []
    for number, image_id in enumerate(ids, start=1):
        annotations += coco_detections(number, predictions[image_id])
    return {
        "format_version": FORMAT_VERSION,
        "images": [
            {"id": number, "image_id": image_id, "file_name": infos[image_id].file_name}
            for number, image_id in enumerate(ids, start=1)
        ],
        "annotations": annotations,
        "categories": categories(class_names),
    }


def coco_detections(number: int, found: Prediction) -> list[dict[str, Any]]:
    """The detections of image `number` in COCO's form."""
    columns = (found.labels.tolist(), _xywh(found.boxes).tolist(), found.scores.tolist())
    return [
        {"image_id": number, "category_id": label, "bbox": box, "score": score}
        for label, box, score in zip(*columns, strict=True)
    ]


def from_coco_predictions(
    content: Mapping[str, Any], class_names: Sequence[str]
) -> dict[str, Prediction]:
    """Read back what `to_coco_predictions` made; the arrays are equal bit for bit.

    Raises:
        DataError: A newer format, other classes, or an object of another form.
    """
    check_version(content, FORMAT_VERSION, "the file of predictions")
    try:
        if content["categories"] != categories(class_names):
            names = [category["name"] for category in content["categories"]]
            raise DataError(f"the predictions are of {names}, the data of {list(class_names)}")
        rows: dict[int, list[Any]] = {image["id"]: [] for image in content["images"]}
        for row in content["annotations"]:
            rows[row["image_id"]].append((*row["bbox"], row["category_id"], row["score"]))
        return {
            image["image_id"]: _prediction(np.array(rows[image["id"]], dtype=np.float64))
            for image in content["images"]
        }
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"the predictions are not in the COCO form of this program: {error!r}"
        ) from (error)


def to_coco_objects(table: Columns) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two data sets that pycocotools compares: annotated boxes and detections.

    Every id starts at 1, because pycocotools takes the id 0 for "unmatched". Each ignore region
    becomes a crowd region of EVERY class, as it is in `hits.match`.
    """
    common = {
        "images": [{"id": number} for number in range(1, len(table.image_ids) + 1)],
        "categories": categories(table.class_names),
    }
    every = range(1, len(table.class_names) + 1)
    truth = _objects(table.gt_image, table.gt_boxes)
    labels, ignored = table.gt_labels.tolist(), table.gt_ignore.tolist()
    annotations = [
        {**row, "category_id": category, "iscrowd": int(ignore)}
        for row, label, ignore in zip(truth, labels, ignored, strict=True)
        for category in (every if ignore else (label,))
    ]
    found = _objects(table.det_image, table.det_boxes)
    labels, scores = table.det_labels.tolist(), table.det_scores.tolist()
    for row, label, score in zip(found, labels, scores, strict=True):
        row.update(category_id=label, score=score, iscrowd=0)
    for rows in (annotations, found):
        for number, row in enumerate(rows, start=1):
            row["id"] = number
    return {**common, "annotations": annotations}, {**common, "annotations": found}


def categories(class_names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's list of classes, numbered from 1 as labels are."""
    return [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)]


def _objects(image: np.ndarray, boxes: np.ndarray) -> list[dict[str, Any]]:
    xywh = _xywh(boxes)
    area = xywh[:, 2] * xywh[:, 3]
    rows = zip((image + 1).tolist(), xywh.tolist(), area.tolist(), strict=True)
    return [{"image_id": number, "bbox": box, "area": size} for number, box, size in rows]


def _xywh(boxes: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] xyxy as float64 [N, 4] x, y, width, height."""
    wide = boxes.astype(np.float64)
    wide[:, 2:] -= wide[:, :2]
    return wide


def _prediction(rows: np.ndarray) -> Prediction:
    """Rows of x, y, width, height, label, score as a Prediction."""
    rows = rows.reshape(-1, 6)
    boxes = rows[:, :4].copy()
    boxes[:, 2:] += boxes[:, :2]
    return Prediction(
        boxes.astype(np.float32), rows[:, 4].astype(np.int64), rows[:, 5].astype(np.float32)
    )
