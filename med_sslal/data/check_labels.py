"""Boxes, classes, groups and equal pictures of a data set: counts, and what looks wrong."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.types import Annotation
from med_sslal.base.views import MIN_SIDE
from med_sslal.data.check import Finding, Pixels
from med_sslal.data.splits import SPLIT_NAMES
from med_sslal.utils.boxes import areas, paired_iou, pairs

# A box over so much of its image is rather a slip than an object.
COVERS = 0.9
# Two boxes that overlap so much are rather one object, drawn twice.
TWICE = 0.95
# Images that one sentence names.
_MOST_IDS = 10
# Limits of the classes of size, in pixels of the run's image_size.
SIZES = (0, 8, 16, 32, 64, 128)
SIZE_NAMES = (*(f"{low}-{high}" for low, high in pairwise(SIZES)), f"{SIZES[-1]}+")


@dataclass(frozen=True)
class Objects:
    """Every box of a data set that is no ignore region; N of them."""

    image_ids: tuple[str, ...]  # of the labelled images, whose positions `image` holds
    image: np.ndarray  # int64 [N]
    boxes: np.ndarray  # float64 [N, 4], ORIGINAL pixels
    labels: np.ndarray  # int64 [N]
    scale: np.ndarray  # float64 [N], from ORIGINAL pixels to those of the run's image_size
    share: np.ndarray  # float64 [N], of the image's area
    split: np.ndarray  # str [N], "" where the image is in none

    @property
    def framed(self) -> np.ndarray:
        """The boxes in pixels of the run's image_size: float64 [N, 4]."""
        return self.boxes * self.scale[:, None]

    @property
    def sides(self) -> np.ndarray:
        """Square root of the area of each there: float64 [N]."""
        return np.sqrt(areas(self.framed))


def objects_of(data: BaseDataset, size: tuple[int, int]) -> Objects:
    """The boxes of a data set, whose images a run brings to `size` (height, width)."""
    infos, known = data.images.infos, data.labels.annotations
    ids = tuple(image_id for image_id in known if image_id in infos)
    of_split = {image_id: name for name, own in data.images.splits.items() for image_id in own}
    kept = [~known[image_id].ignore for image_id in ids]
    image = np.repeat(np.arange(len(ids)), [int(keep.sum()) for keep in kept])
    boxes = [known[image_id].boxes[keep] for image_id, keep in zip(ids, kept, strict=True)]
    labels = [known[image_id].labels[keep] for image_id, keep in zip(ids, kept, strict=True)]
    shapes = np.array([infos[image_id].orig_size for image_id in ids], float).reshape(-1, 2)
    flat = np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64)
    return Objects(
        image_ids=ids,
        image=image,
        boxes=flat,
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        scale=(np.array(size) / shapes).min(1)[image],
        share=areas(flat) / shapes.prod(1)[image],
        split=np.array([of_split.get(image_id, "") for image_id in ids], dtype=str)[image],
    )


def counts(data: BaseDataset, objects: Objects) -> dict[str, Any]:
    """How many of what: of every split its images, groups, boxes by class and by class and size."""
    infos, known = data.images.infos, data.labels.annotations
    names, sizes = data.labels.class_names, np.searchsorted(SIZES, objects.sides, "right") - 1
    result: dict[str, Any] = {}
    for split in SPLIT_NAMES:
        ids = data.images.splits.get(split, ())
        labels = [known[image_id] for image_id in ids if image_id in known]
        result[split] = {
            "images": len(ids),
            "groups": len({infos[image_id].group_id for image_id in ids}),
            "labelled": len(labels),
            "without_object": sum(label.n_objects == 0 for label in labels),
            "objects": sum(label.n_objects for label in labels),
            "ignore_regions": int(sum(label.ignore.sum() for label in labels)),
            "classes": {
                name: dict(
                    zip(
                        SIZE_NAMES,
                        np.bincount(
                            sizes[(objects.split == split) & (objects.labels == number)],
                            minlength=len(SIZE_NAMES),
                        ).tolist(),
                        strict=True,
                    )
                )
                for number, name in enumerate(names, start=1)
            },
        }
    return result


def look_at_labels(data: BaseDataset, objects: Objects) -> Iterator[Finding]:
    """What looks wrong in labels and splits, whatever the pixels are."""
    for text in data.labels.notes:
        yield Finding("warning", "boxes", text)
    yield from _torn_groups(data)
    yield from _classes(data, objects)
    yield from _boxes(data, objects)


def _torn_groups(data: BaseDataset) -> Iterator[Finding]:
    sides: dict[str, dict[str, str]] = defaultdict(dict)
    for split, ids in data.images.splits.items():
        for image_id in ids:
            sides[data.images.infos[image_id].group_id].setdefault(split, image_id)
    for group, own in sides.items():
        if len(own) > 1:
            where = ", ".join(f"{split} ({image_id})" for split, image_id in own.items())
            text = f"group (patient) '{group}' is in several splits: {where}"
            yield Finding("error", "groups", text, tuple(own.values()))


def _classes(data: BaseDataset, objects: Objects) -> Iterator[Finding]:
    known = data.labels.annotations
    if not known:
        text = "no image has a label: training, validation and test need some"
        yield Finding("warning", "labels", text)
        return
    trained = set(objects.labels[objects.split == "train"].tolist())
    for number, name in enumerate(data.labels.class_names, start=1):
        if number not in objects.labels:
            yield Finding("warning", "classes", f"class '{name}' has no object")
        elif number not in trained:
            yield Finding("warning", "classes", f"class '{name}' has no object to train on")
    for split, ids in data.images.splits.items():
        if not any(known[image_id].n_objects for image_id in ids if image_id in known):
            yield Finding("warning", "classes", f"split '{split}' has no object")


def _boxes(data: BaseDataset, objects: Objects) -> Iterator[Finding]:
    names = data.labels.class_names

    def told(row: int) -> str:
        corners = ", ".join(f"{value:g}" for value in objects.boxes[row].round(2))
        return f"{names[objects.labels[row] - 1]} box ({corners})"

    def found(row: int, text: str) -> Finding:
        image_id = objects.image_ids[objects.image[row]]
        return Finding("warning", "boxes", f"{image_id}: {told(row)} {text}", (image_id,))

    for row in np.flatnonzero(objects.share >= COVERS).tolist():
        yield found(row, f"covers {objects.share[row]:.0%} of its image")
    short = (objects.framed[:, 2:] - objects.framed[:, :2]).min(1)
    for row in np.flatnonzero(short < MIN_SIDE).tolist():
        text = f"is {short[row]:.2g} px wide or high at image_size, under {MIN_SIDE:g}: it teaches"
        yield found(row, f"{text} nothing there")
    for first, second in pairs(objects.image, objects.image):
        once = first < second
        first, second = first[once], second[once]
        overlap = paired_iou(objects.boxes[first], objects.boxes[second])
        rows = np.stack([first, second], 1)[overlap >= TWICE]
        for one, other in rows.tolist():
            yield found(one, f"is there twice: {told(other)}")


def look_at_equal(data: BaseDataset, pixels: Pixels) -> Iterator[Finding]:
    """Images that cannot be decoded, show nothing, or are there twice."""
    for image_id, problem in pixels.problems.items():
        yield Finding("error", "pixels", problem, (image_id,))
    for image_id in pixels.flat:
        text = f"{image_id}: all pixels have one value"
        yield Finding("warning", "pixels", text, (image_id,))
    of_split = {image_id: name for name, ids in data.images.splits.items() for image_id in ids}
    for ids in pixels.same.values():
        if len(ids) < 2:
            continue
        sides = sorted({of_split[image_id] for image_id in ids if image_id in of_split})
        across = len(sides) > 1
        more = [f"and {len(ids) - _MOST_IDS} more"] * (len(ids) > _MOST_IDS)
        text = f"{len(ids)} images are the same picture: {', '.join(ids[:_MOST_IDS] + more)}"
        if across:
            text += f"; they are in {' and '.join(sides)}, so that a measured image was trained on"
        known = data.labels.annotations
        labels = {_key(known[image_id]) for image_id in ids if image_id in known}
        if len(labels) > 1:
            text += "; their labels differ"
        level = "error" if across else "warning"
        yield Finding(level, "duplicates", text, tuple(ids))


def _key(label: Annotation) -> bytes:
    order = np.lexsort(label.boxes.T)
    return label.boxes[order].tobytes() + label.labels[order].tobytes()
