"""Localisation tightness with classification (Kao et al., ACCV 2018, LT/C)."""

from typing import Any

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.aggregate import Aggregate
from med_sslal.al.criteria.base import BOX_FLOOR, BoxCriterion, confidence
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.utils.boxes import paired_iou


class LocalizationTightness(BoxCriterion):
    """Localisation tightness: sure of the class but not of the box, or the reverse.

    Formula: T_j = IoU(B_j, R_j), 1 where the box head left its proposal as it was;
    J_j = abs(T_j + P_j - 1); s_j = 1 - J_j (the paper takes the smallest J). Source: Kao, Lee, Sen
    and Liu, Localization-Aware Active Learning for Object Detection, ACCV 2018. Default aggregate:
    score_weighted; `max` is the paper's, which saturates on crowded images. With `classification`
    false only the half on boxes remains: s_j = 1 - T_j, with a floor of 0.3 by default.

    Args:
        classification: Whether P_j counts; false rates the box alone.
    """

    name = "localization_tightness"
    needs = ("class_probs", "proposals")
    default_aggregate: Aggregate = "score_weighted"

    def __init__(self, *, classification: bool = True, **boxes_to_images: Any) -> None:
        self.classification = classification
        if not classification:
            self.default_floor = BOX_FLOOR
        super().__init__(**boxes_to_images)

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """1 - abs(T_j + P_j - 1), or 1 - T_j."""
        section = record.section(PLAIN)
        tightness = round_scores(paired_iou(section.boxes, section.proposals))
        if not self.classification:
            return 1.0 - tightness
        return 1.0 - np.abs(tightness + confidence(section) - 1.0)
