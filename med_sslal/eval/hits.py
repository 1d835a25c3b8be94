"""Which detection meets which annotated box, without a loop over boxes.

Shape shorthand: D detections, G annotated boxes, over all images of a split. A *lesion* is an
annotated box that is no ignore region.
"""

from collections.abc import Iterable, Iterator
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
    # bool [D], the detection overlaps a lesion of its class, be it the first or not.
    hit: np.ndarray
    false_positive: np.ndarray  # bool [D], it overlaps none and is not ignored.


def match(table: Columns, overlap: Overlap = "iou", least: float = MIN_OVERLAP) -> Matches:
    """Match every detection to every lesion of its own image and class.

    A detection finds all lesions that it overlaps by `least` or more. It is ignored when it
    finds none and `MIN_OVERLAP` of its own area or more lies in one ignore region, of whatever
    class: what a region hides is not known to be of the region's class only.
    `overlap` is `iou`, or `iobb` = intersection over the detection's own area.
    """
    found = np.full(len(table.gt_labels), -np.inf, dtype=np.float32)
    hit = np.zeros(len(table.det_labels), dtype=bool)
    lesions = np.flatnonzero(~table.gt_ignore)
    for det, gt, _ in overlapping(table, np.arange(len(hit)), lesions, overlap, least):
        np.maximum.at(found, gt, table.det_scores[det])
        hit[det] = True
    return Matches(found, hit, ~(hit | in_ignore_region(table)))


def in_ignore_region(table: Columns) -> np.ndarray:
    """Whether `MIN_OVERLAP` of a detection's own area or more lies in one region: bool [D]."""
    hidden = np.zeros(len(table.det_labels), dtype=bool)
    every, regions = np.arange(len(hidden)), np.flatnonzero(table.gt_ignore)
    for det, _, _ in overlapping(table, every, regions, "iobb", any_class=True):
        hidden[det] = True
    return hidden


def overlapping(
    table: Columns,
    dets: np.ndarray,
    gts: np.ndarray,
    overlap: Overlap = "iou",
    least: float = MIN_OVERLAP,
    *,
    any_class: bool = False,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield pairs of one image, and one class unless `any_class`, that overlap by `least` or more.

    They are of the rows `dets` of detections and `gts` of annotated boxes; with their overlap.
    """
    n_classes = 1 if any_class else len(table.class_names) + 1
    det_key = table.det_image * n_classes + (0 if any_class else table.det_labels)
    gt_key = table.gt_image * n_classes + (0 if any_class else table.gt_labels)
    for a, b in pairs(det_key[dets], gt_key[gts]):
        det, gt = dets[a], gts[b]
        mine, theirs = table.det_boxes[det], table.gt_boxes[gt]
        shared, whole = paired_intersection(mine, theirs), areas(mine)
        if overlap == "iou":
            whole = whole + areas(theirs) - shared
        # Written as a product: a box of no area has no quotient, and touches nothing.
        enough = (shared > 0) & (shared >= least * whole)
        yield det[enough], gt[enough], shared[enough] / whole[enough]


def one_to_one(rows: Iterable[tuple[int, int, float]]) -> dict[int, tuple[int, float]]:
    """Take pairs (detection, annotated box, overlap) in their order, no box of either in two.

    Returns:
        Annotated box to its detection and their overlap, in the order in which they were taken.
    """
    used: set[int] = set()
    taken: dict[int, tuple[int, float]] = {}
    for detection, target, overlap in rows:
        if detection not in used and target not in taken:
            used.add(detection)
            taken[target] = detection, overlap
    return taken
