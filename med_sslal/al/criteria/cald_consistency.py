"""Consistency over augmentations (Yu et al., CVPR Workshops 2022, CALD)."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from med_sslal.al.arrays import js_divergence, round_scores
from med_sslal.al.criteria.base import DetectionCriterion, confidence
from med_sslal.al.record import PLAIN, PoolRecord, RecordSection
from med_sslal.al.view_matches import best_matches

AUGMENTATIONS = ("flip", "cutout", "downsize", "rotate")


class CaldConsistency(DetectionCriterion):
    """CALD consistency: some box behaves oddly when the image is changed.

    Formula: for box j and an augmented pass, m_j = IoU(B_j, B_k) + (1 - JS(p_j, p_k)) (P_j + P_k)
    / 2, where k is the box of that pass, mapped back, that overlaps B_j most (of several, the one
    of the highest m_j), and JS the Jensen-Shannon divergence in bits; m_j = 0 where no box
    overlaps. Image value = - mean over augmentations of min over j of abs(m_j - beta). Source: Yu,
    Zhu, Yang and Chen, Consistency-based Active Learning for Object Detection, CVPR Workshops 2022
    (the paper takes the smallest). The aggregation is built in; its second stage is
    `class_balance`. It cannot see a missed object. Costs four more passes.

    Args:
        beta: The m of the boxes that teach most; it depends on the detector.
    """

    name = "cald_consistency"
    views = (PLAIN, *AUGMENTATIONS)

    def __init__(self, *, beta: Annotated[float, Interval(ge=0, le=2)] = 1.3, **empty: Any) -> None:
        super().__init__(**empty)
        self.beta = beta

    def block_values(self, record: PoolRecord) -> np.ndarray:
        """The mean over augmentations, sign turned."""
        plain = record.section(PLAIN)
        total = np.zeros(len(plain))
        for view in AUGMENTATIONS:
            gap = np.abs(_consistency(plain, record.section(view)) - self.beta)
            nearest = np.full(len(plain), np.inf)
            np.minimum.at(nearest, plain.owners, round_scores(gap))
            total += nearest
        return np.where(plain.counts > 0, -total / len(AUGMENTATIONS), np.nan)


def _consistency(plain: RecordSection, view: RecordSection) -> np.ndarray:
    """m_j of every box of the plain section, [M]."""
    matches = best_matches(plain, view)
    rows, partners = matches.rows, matches.partners
    agreement = 1.0 - js_divergence(plain.class_probs[rows], view.class_probs[partners])
    agreement *= (confidence(plain)[rows] + confidence(view)[partners]) / 2
    best = np.zeros(len(matches.iou))
    np.maximum.at(best, rows, agreement)
    return matches.iou + best
