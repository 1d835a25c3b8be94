"""Which detection meets which annotated box, without a loop over boxes.

Shape shorthand: D detections, G annotated boxes, over all images of a split. A *lesion* is an
annotated box that is no ignore region.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from med_sslal.eval.eval_utils import Columns
from med_sslal.utils.boxes import areas, paired_intersection, pairs

Overlap = Literal["iou", "iobb"]

MIN_OVERLAP = 0.5
"""Least overlap of a hit, and least share of a detection's own area in an ignore region."""


class Matches(NamedTuple):
    """The outcome of matching; none of it depends on the order of detections of equal score."""

    # float32 [G], best score among the detections that overlap the lesion, -inf where none does and
    # for ignore regions: it is found at every threshold up to this.
    found_score: np.ndarray
    hit: (
        np.ndarray
    )  # bool [D], the detection overlaps a lesion of its class, be it the first or not.
    false_positive: np.ndarray  # bool [D], it overlaps none and is not ignored.


def match(table: Columns, overlap: Overlap = "iou", least: float = MIN_OVERLAP) -> Matches:
    """Match every detection to every lesion of its own image and class.

    A detection finds all lesions that it overlaps by `least` or more. It is ignored when it
    finds none and `MIN_OVERLAP` of its own area or more lies in one ignore region, of whatever
    class: what a region hides is not known to be of the region's class only.
    `overlap` is `iou`, or `iobb` = intersection over the detection's own area.
    """
    lesion = np.flatnonzero(~table.gt_ignore)
    n_classes = len(table.class_names) + 1
    found = np.full(len(table.gt_labels), -np.inf, dtype=np.float32)
    hit = np.zeros(len(table.det_labels), dtype=bool)
    det_class = table.det_image * n_classes + table.det_labels
    lesion_class = table.gt_image[lesion] * n_classes + table.gt_labels[lesion]
    for det, gt in _overlapping(
        table.det_boxes, det_class, table.gt_boxes[lesion], lesion_class, overlap, least
    ):
        np.maximum.at(found, lesion[gt], table.det_scores[det])
        hit[det] = True
    return Matches(found, hit, ~(hit | in_ignore_region(table)))


def in_ignore_region(table: Columns) -> np.ndarray:
    """Whether `MIN_OVERLAP` of a detection's own area or more lies in one region: bool [D]."""
    region = np.flatnonzero(table.gt_ignore)
    hidden = np.zeros(len(table.det_labels), dtype=bool)
    for det, _ in _overlapping(
        table.det_boxes, table.det_image, table.gt_boxes[region], table.gt_image[region], "iobb"
    ):
        hidden[det] = True
    return hidden


def _overlapping(
    boxes: np.ndarray,
    keys: np.ndarray,
    other_boxes: np.ndarray,
    other_keys: np.ndarray,
    overlap: Overlap,
    least: float = MIN_OVERLAP,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the pairs (row of `boxes`, row of `other_boxes`) of one key that overlap enough."""
    for a, b in pairs(keys, other_keys):
        shared, whole = paired_intersection(boxes[a], other_boxes[b]), areas(boxes[a])
        if overlap == "iou":
            whole = whole + areas(other_boxes[b]) - shared
        # Written as a product: a box of no area has no quotient, and touches nothing.
        enough = (shared > 0) & (shared >= least * whole)
        yield a[enough], b[enough]
