"""What a run's report shows of its choices: queried images, and what was bought.

Labels of the pool that the run has not bought are hidden from the report too.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.types import Annotation, Prediction, Selected
from med_sslal.eval.drawing import marks_of
from med_sslal.report.run_data import CycleData, RunData
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import python_generator

Content = Mapping[str, Any]

MAX_PICTURES, MAX_PICTURE_BYTES = 240, 30_000
"""Pictures of one page, and of each: together they keep a page far below `pages.MAX_BYTES`."""

_SIDES_AND_QUALITIES = ((320, 82), (320, 65), (240, 60), (160, 50), (96, 40))

# Pictures of each query: by rank, and left ones.
N_QUERIED, N_CONTRAST = 30, 5

# Of a picture: the detections with their score (more would hide each other), and the height of
# these, of the longer side.
_N_TEXTS, _LETTER = 4, 0.062


def queries(run: RunData) -> Content:
    """The images of each query by rank, and some that were left."""
    # Beyond that many queries the newest are worth the room.
    drawn = [cycle for cycle in run.cycles if cycle.selection is not None][-MAX_PICTURES:]
    room = min(1.0, MAX_PICTURES / max(1, len(drawn)) / (N_QUERIED + N_CONTRAST))
    counts = max(1, int(N_QUERIED * room)), int(N_CONTRAST * room)
    pictures = [{} if run.dataset is None else _pictures(run, each, *counts) for each in drawn]
    shown = [{"cycle": each, **own} for each, own in zip(drawn, pictures, strict=True)]
    return {"n_listed": N_QUERIED, "queries": shown}


def _pictures(run: RunData, cycle: CycleData, n_queried: int, n_contrast: int) -> Content:
    selection = cycle.selection
    assert selection is not None
    others = []
    for name in _contrast(cycle)[:n_contrast]:
        values = {key: own[name] for key, own in selection.scores.items() if name in own}
        others.append(_picture(run, cycle, Selected(name, 0, "", values, "not taken")))
    taken = [_picture(run, cycle, item) for item in selection.items[:n_queried]]
    return {"taken": taken, "others": others}


def _contrast(cycle: CycleData) -> list[str]:
    """Images that were not taken: those with detections kept, or as many drawn by the seed."""
    assert cycle.selection is not None
    taken = set(cycle.selection.image_ids)
    if cycle.detections:
        return [name for name in cycle.detections if name not in taken]
    rest = [name for name in cycle.pool.unlabelled if name not in taken]
    generator = python_generator(cycle.selection.seed, "contrast", cycle.number)
    return generator.sample(rest, min(N_CONTRAST, len(rest)))


def _picture(run: RunData, cycle: CycleData, item: Selected) -> Content:
    """One picture, its truth shown where that was bought."""
    dataset, image_id = run.dataset, item.image_id
    assert dataset is not None
    if image_id not in dataset.images.infos:
        raise DataError(
            f"image '{image_id}' of cycle {cycle.number} is not in the data set: give the run the "
            "data it was made on"
        )
    # A reason names the criterion that decided; the others' values stand before it.
    others = {name: value for name, value in item.values.items() if name not in item.reason}
    shown = draw_picture(dataset, image_id, cycle.detections.get(image_id))
    return {"item": item, "others": others, **shown}


def pseudo_labelled(run: RunData) -> Content:
    """How right pseudo-labels are, and images with the surest and the least sure ones.

    The images are of the newest cycle that has any.
    """
    # Where no truth is known, it is that of the labels which came later.
    later = {
        cycle.number - 1: cycle.earlier_pseudo_quality
        for cycle in run.cycles
        if cycle.earlier_pseudo_quality
    }
    quality = {cycle.number: cycle.pseudo_quality for cycle in run.cycles} | later
    content: Content = {"quality": quality, "later": bool(later), "pictures": []}
    made = [cycle.pseudo for cycle in run.cycles if cycle.pseudo is not None]
    if run.dataset is None or not made:
        return content
    for image_id, scores in made[-1].examples.items():
        label = made[-1].labels[image_id]
        boxes, labels = label.boxes[~label.ignore], label.labels[~label.ignore]
        item = Selected(image_id, 0, "", {}, f"least score {min(scores):.2f}")
        found = Prediction(boxes, labels, np.array(scores, np.float32))
        shown = draw_picture(run.dataset, image_id, found)
        content["pictures"].append({"item": item, "others": {}, **shown})
    return content


def draw_picture(dataset: BaseDataset, image_id: str, found: Prediction | None) -> Content:
    """An image as a page's gallery has it: its pixels, and marks of its label and detections.

    DataError where its file cannot be decoded.
    """
    labels, pixels = dataset.labels, dataset.images.picture(image_id)
    return draw_pixels(pixels, labels.annotations.get(image_id), found, labels.class_names)


def draw_pixels(
    pixels: np.ndarray,
    truth: Annotation | None,
    found: Prediction | None,
    class_names: Sequence[str],
) -> Content:
    """The same of float [H, W, 3] RGB in [0, 1], a label and detections."""
    height, width = pixels.shape[:2]
    letter = _LETTER * max(height, width)
    marks = marks_of(truth, found, class_names, (height, width), letter=letter, n_texts=_N_TEXTS)
    return {
        "jpeg": base64.b64encode(jpeg(pixels)).decode(),
        "size": (width, height),
        "letter": letter,
        "marks": marks,
    }


def jpeg(image: np.ndarray) -> bytes:
    """A small JPEG of float [H, W, 3] RGB in [0, 1], its sides and quality such that it fits."""
    pixels = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    stream = io.BytesIO()
    for side, quality in _SIDES_AND_QUALITIES:
        small, stream = pixels.copy(), io.BytesIO()
        small.thumbnail((side, side), Image.Resampling.BOX)
        small.save(stream, "JPEG", quality=quality)
        if stream.tell() <= MAX_PICTURE_BYTES:
            break
    return stream.getvalue()


def bought(run: RunData) -> Content | None:
    """What the labels were spent on, against images that nobody chose; None without data."""
    dataset = run.dataset
    if dataset is None or not run.cycles:
        return None
    infos, splits, names = dataset.images.infos, dataset.images.splits, dataset.labels.class_names
    held_out = (*splits["val"], *splits["test"])
    sizes = _sizes(dataset.labels.of(held_out).values())
    limits = np.quantile(sizes, [1 / 3, 2 / 3]) if len(sizes) else np.zeros(2)
    groups: dict[str, Sequence[str]] = {"initial set": run.cycles[0].pool.labelled}
    for cycle in run.cycles:
        if cycle.selection is not None:
            # A person has not answered all, or none yet.
            told = [
                name for name in cycle.selection.image_ids if name in dataset.labels.annotations
            ]
            groups[f"query after cycle {cycle.number}"] = told
    groups["validation and test"] = held_out
    rows = []
    for group, ids in groups.items():
        labels = dataset.labels.of(ids).values()
        third = np.searchsorted(limits, _sizes(labels), "right")
        found = [each.labels[~each.ignore] for each in labels]
        classes = np.concatenate([np.zeros(0, int), *found])
        row = {
            "name": group,
            "images": len(ids),
            "patients": len({infos[image_id].group_id for image_id in ids}),
            "boxes": len(classes),
            "empty": sum(each.n_objects == 0 for each in labels),
            "classes": np.bincount(classes, minlength=len(names) + 1)[1:].tolist(),
            "thirds": np.bincount(third, minlength=3).tolist(),
        }
        rows.append(row)
    return {
        "rows": rows,
        "limits": limits.tolist(),
        "has_patients": any(info.group_id != name for name, info in infos.items()),
        "classes": names if len(names) > 1 else (),
    }


def _sizes(labels: Iterable[Annotation]) -> np.ndarray:
    """Square root of the area of every object, in ORIGINAL pixels."""
    boxes = [label.boxes[~label.ignore] for label in labels]
    sides = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    return np.sqrt((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1]))
