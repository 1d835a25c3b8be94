"""Localisation stability with classification (Kao et al., ACCV 2018, LS/C)."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Interval

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.aggregate import aggregate_boxes
from med_sslal.al.criteria.base import DetectionCriterion, confidence
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.view_matches import best_matches


class LocalizationStability(DetectionCriterion):
    """Localisation stability: boxes move when noise is added, and some class is unsure.

    Formula: S_j = mean over the noisy copies of the highest IoU of B_j with a box of the same class
    in the copy, 0 where there is none; S = sum of P_j S_j over sum of P_j; image value =
    max over j of (1 - P_j) - weight S. The aggregation is built in. Source: Kao, Lee, Sen and Liu,
    Localization-Aware Active Learning for Object Detection, ACCV 2018. Costs one pass per copy.

    Args:
        copies: Noisy copies of each image, each a pass over the pool.
        weight: What the stability of the boxes weighs against the doubt about their class.
    """

    name = "localization_stability"

    def __init__(
        self,
        *,
        copies: Annotated[int, Interval(ge=1, le=100)] = 6,
        weight: Annotated[float, Ge(0)] = 1.0,
        **empty: Any,
    ) -> None:
        super().__init__(**empty)
        self.weight = weight
        self.copies = tuple(f"noise_{number}" for number in range(1, copies + 1))
        self.views = (PLAIN, *self.copies)

    def block_values(self, record: PoolRecord) -> np.ndarray:
        """The doubt about the least sure box, less the weighted stability of all."""
        plain = record.section(PLAIN)
        sure = confidence(plain)
        stability = np.zeros(len(sure))
        for view in self.copies:
            stability += best_matches(plain, record.section(view), same_class=True).iou
        stability = round_scores(stability / len(self.copies))
        doubt = aggregate_boxes(1.0 - sure, sure, plain.offsets, "max")
        stable = aggregate_boxes(stability, sure, plain.offsets, "score_weighted")
        return doubt - self.weight * stable
