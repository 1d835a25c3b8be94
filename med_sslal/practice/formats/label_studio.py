"""Label Studio: tasks with predictions and the labelling config; its JSON with all tasks."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from med_sslal.practice.answers import Answer, Query, QueryImage
from med_sslal.practice.formats.rows import (
    Box,
    Rows,
    check_size,
    corners_inside,
    entries,
    numbers,
)
from med_sslal.utils.errors import DataError

NEWEST = "newest"
# Percent of the image's sides.
SIDES = ("x", "y", "width", "height")


def label_studio_tasks(query: Query, pictures: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """The tasks to import.

    `pictures` has, by image id, the address of its picture, and those of what lies beside it.
    """
    tasks, any_beside = [], has_beside(pictures)
    for image in query.images:
        first, *beside = pictures[image.image_id]
        data = {
            "image": first,
            **({"beside": beside} if any_beside else {}),
            "query_id": query.query_id,
            "image_id": image.image_id,
            "sha256": image.sha256,
        }
        predictions = []
        if len(image.shown.labels):
            predictions.append(
                {
                    "model_version": query.model_hash[:12],
                    "score": float(image.shown.scores.max()),
                    "result": _result(image, query.class_names),
                }
            )
        tasks.append({"data": data, "meta": {"rank": image.rank}, "predictions": predictions})
    return tasks


def _result(image: QueryImage, class_names: Sequence[str]) -> list[dict[str, Any]]:
    shown, (width, height) = image.shown, (image.width, image.height)
    columns = (shown.boxes.tolist(), shown.labels.tolist(), shown.scores.tolist())
    result = []
    for number, ((x1, y1, x2, y2), label, score) in enumerate(zip(*columns, strict=True), start=1):
        percent = (x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height)
        value: dict[str, Any] = {
            name: 100 * part for name, part in zip(SIDES, percent, strict=True)
        }
        result.append(
            {
                "id": f"{image.rank}_{number}",
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": score,
                "value": {**value, "rotation": 0, "rectanglelabels": [class_names[label - 1]]},
            }
        )
    return result


def has_beside(pictures: Mapping[str, Sequence[str]]) -> bool:
    """Whether something lies beside any picture."""
    return any(len(own) > 1 for own in pictures.values())


def labeling_config(class_names: Sequence[str], pictures: Mapping[str, Sequence[str]]) -> bytes:
    """The labelling interface as XML, for tasks with these `pictures`."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    labels = ElementTree.SubElement(view, "RectangleLabels", name="label", toName="image")
    for name in class_names:
        ElementTree.SubElement(labels, "Label", value=name)
    if has_beside(pictures):
        ElementTree.SubElement(view, "Image", name="beside", valueList="$beside", zoom="true")
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="utf-8") + b"\n"


def read_label_studio(
    path: Path, tasks: Sequence[Any], query: Query, reader: str | None
) -> list[Answer]:
    """The answers in an export "JSON" of all tasks; ListedError of all rows that are wrong.

    Where a task has several annotations, that of `reader` (an e-mail address or a number) counts,
    or the one that was changed last where that is "newest".
    """
    rows = Rows(path, query)
    for position, task in enumerate(tasks):
        with rows.noted():
            _read_task(rows, task, f"{path}, task [{position}]", reader)
    return rows.finish()


def _read_task(rows: Rows, task: Any, where: str, reader: str | None) -> None:
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise DataError(f"{where}: it has no object 'data'")
    named = f"{where} (image '{data.get('image_id')}')"
    rows.check_query(data.get("query_id"), named)
    image = rows.found(rows.by_id, data.get("image_id"), where)
    if data.get("sha256") != image.sha256:
        raise DataError(f"{named}: sha256 differs: it is about another picture than the query's")
    annotations = list(entries(task, "annotations", named))
    if not all(isinstance(each.get("was_cancelled", False), bool) for each in annotations):
        raise DataError(f"{named}: was_cancelled must be true or false")
    if not annotations:
        if task.get("drafts"):
            rows.add(image, "in_progress")
        return
    given = [each for each in annotations if not each.get("was_cancelled")]
    chosen = _chosen(given, reader, named) if given else annotations[-1]
    who, seconds = (_names(chosen) or [""])[0], _seconds(chosen, named)
    if not given:
        rows.add(image, "skipped", (), who, seconds)
        return
    boxes: list[Box] = []
    regions = list(entries(chosen, "result", named))
    for number, region in enumerate(regions, start=1):
        with rows.noted():
            boxes.append(_box(rows, region, image, f"{named}, region {number}"))
    rows.add(image, "labelled" if regions else "confirmed_empty", boxes, who, seconds)


def _chosen(given: list[dict[str, Any]], reader: str | None, where: str) -> dict[str, Any]:
    """The annotation that counts, of some that are not cancelled."""
    if len(given) == 1:
        return given[0]
    if reader == NEWEST:
        try:
            return max(given, key=lambda each: datetime.fromisoformat(each["updated_at"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: its annotations have no updated_at that tells") from error
    own = [each for each in given if reader in _names(each)]
    if len(own) == 1:
        return own[0]
    names = ", ".join(f"'{(_names(each) or [''])[0]}'" for each in given)
    told = "" if reader is None else f", {len(own)} of them by reader '{reader}'"
    raise DataError(
        f"{where}: it has {len(given)} annotations, by {names}{told}: name the reader whose one "
        f'annotation counts, or "{NEWEST}"'
    )


def _names(annotation: Mapping[str, Any]) -> list[str]:
    """What its reader can be called by, the best first."""
    who = annotation.get("completed_by")
    parts = (who.get("email"), who.get("id")) if isinstance(who, dict) else (who,)
    return [str(part) for part in parts if isinstance(part, str | int) and part != ""]


def _seconds(annotation: Mapping[str, Any], where: str) -> float | None:
    if annotation.get("lead_time") is None:
        return None
    (seconds,) = numbers(annotation, ["lead_time"], where)
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{where}: lead_time is {seconds}, which is no time in seconds")
    return seconds


def _box(rows: Rows, region: Mapping[str, Any], image: QueryImage, where: str) -> Box:
    if region.get("type") != "rectanglelabels":
        raise DataError(
            f"{where}: it is of type '{region.get('type')}': only rectanglelabels are taken"
        )
    value = region.get("value")
    x, y, width, height = numbers(value, SIDES, where)
    assert isinstance(value, dict)
    names = value.get("rectanglelabels")
    if not isinstance(names, list) or len(names) != 1:
        raise DataError(f"{where}: it must have one class, found {names}")
    label = rows.label(names[0], where)
    if value.get("rotation", 0) != 0 or region.get("image_rotation", 0) != 0:
        raise DataError(f"{where}: box or image is rotated: draw it upright")
    check_size((region.get("original_width"), region.get("original_height")), image, where)
    percent = (x, y, x + width, y + height)
    sides = (image.width, image.height) * 2
    corners = [part * side / 100 for part, side in zip(percent, sides, strict=True)]
    return corners_inside(corners, image, where), label
