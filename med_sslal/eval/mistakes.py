"""What a detector gets wrong on each image: objects missed, false alarms, loose boxes.

Shape shorthand as in `hits`: N images, D detections, G annotated boxes. An *object* is an annotated
box that is no ignore region. Classes are left aside: a box at the right place is no miss, whatever
it is called.
"""

from dataclasses import dataclass

import numpy as np

from med_sslal.eval.eval_utils import Columns
from med_sslal.eval.hits import in_ignore_region, overlapping

MIN_SCORE = 0.3
"""Detections with a lower score do not count."""

FOUND_IOU, TIGHT_IOU = 0.1, 0.5
"""An object is missed below the first, its box is loose from there to below the second."""


@dataclass(frozen=True)
class Mistakes:
    """The mistakes of each image, in the order of `Columns.image_ids`: float64 [N]."""

    missed: np.ndarray  # Objects that no detection overlaps by IoU 0.1 or more.
    # Detections that overlap no object by that much, and do not lie in an ignore region by half of
    # their area or more.
    false_positives: np.ndarray
    loose_boxes: np.ndarray  # Objects whose best detection has an IoU from 0.1 to below 0.5.
    # Mean of 1 - IoU of the best detection over the objects that are not missed; 0 without any.
    box_loss: np.ndarray


def mistakes(table: Columns) -> Mistakes:
    """Count the mistakes of the detections with a score of MIN_SCORE or more, of any class."""
    sure = np.flatnonzero(table.det_scores >= np.float32(MIN_SCORE))
    objects = np.flatnonzero(~table.gt_ignore)
    touches, best = np.zeros(len(table.det_labels), dtype=bool), np.zeros(len(table.gt_labels))
    for det, gt, overlap in overlapping(table, sure, objects, least=FOUND_IOU, any_class=True):
        touches[det] = True
        np.maximum.at(best, gt, overlap)
    best = best[objects]
    found, false = best > 0, ~(touches | in_ignore_region(table))[sure]
    det_image, gt_image = table.det_image[sure], table.gt_image[objects]

    def per_image(image: np.ndarray, amount: np.ndarray) -> np.ndarray:
        # Without any it would count, in whole numbers.
        counts = np.bincount(image, amount.astype(np.float64), minlength=len(table.image_ids))
        return counts.astype(np.float64)

    n_found = per_image(gt_image, found)
    lost = per_image(gt_image, found * (1 - best))
    return Mistakes(
        missed=per_image(gt_image, ~found),
        false_positives=per_image(det_image, false),
        loose_boxes=per_image(gt_image, found & (best < TIGHT_IOU)),
        box_loss=np.divide(lost, n_found, out=np.zeros_like(lost), where=n_found > 0),
    )
