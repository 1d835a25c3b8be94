"""Boxes of two views of the same images, matched without a loop over boxes or images.

Shape shorthand: N images, M boxes of all of them in the first view, T matched pairs.
"""

from typing import NamedTuple

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.record import RecordSection
from med_sslal.utils.boxes import paired_iou, pairs

# Pairs of boxes compared at once; a block takes some 20 MB.
BLOCK_PAIRS = 2**19


class Matches(NamedTuple):
    """The boxes of another view that each box of a view overlaps most."""

    iou: np.ndarray  # float64 [M], the highest IoU, rounded to 1e-4; 0 where no box overlaps.
    # int64 [T], boxes that have a match, ascending; several times where matches tie, so that what
    # decides between them is a value and not their order.
    rows: np.ndarray
    partners: np.ndarray  # int64 [T], the matching rows of the other view.


def best_matches(
    first: RecordSection, second: RecordSection, *, same_class: bool = False
) -> Matches:
    """For each box of `first` the boxes of the same image in `second` that it overlaps most.

    With `same_class` of the same label alone. Several boxes of `first` may share a partner.
    """
    edges, others = (
        np.ascontiguousarray(np.asarray(section.boxes).T) for section in (first, second)
    )
    best, blocks = np.zeros(len(first.boxes)), []
    for rows, partners in pairs(first.owners, second.owners, BLOCK_PAIRS):
        overlap = np.ones(len(rows), dtype=bool)
        if same_class:
            overlap = first.labels[rows] == second.labels[partners]
        for low, high in ((0, 2), (1, 3)):
            overlap &= edges[low][rows] < others[high][partners]
            overlap &= others[low][partners] < edges[high][rows]
        rows, partners = rows[overlap], partners[overlap]
        iou = round_scores(paired_iou(first.boxes[rows], second.boxes[partners]))
        np.maximum.at(best, rows, iou)
        keep = (iou > 0) & (iou == best[rows])
        blocks.append((rows[keep], partners[keep]))
    rows, partners = (np.concatenate(column) for column in zip(*blocks, strict=True))
    return Matches(best, rows, partners)
