"""Least confidence (Lewis and Gale, SIGIR 1994), averaged over the boxes of an image."""

import numpy as np

from med_sslal.al.criteria.base import BoxCriterion, confidence
from med_sslal.al.record import PLAIN, PoolRecord


class PredictionUncertainty(BoxCriterion):
    """Least confidence: the classifier is unsure of its boxes.

    Formula: s_j = 1 - P_j. Default aggregate: mean. With one class, boxes of P_j < 0.5 rank above
    the undecided ones, so junk boxes dominate the mean: `score_weighted` counts them less.
    """

    name = "prediction_uncertainty"

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """1 - P_j."""
        return 1.0 - confidence(record.section(PLAIN))
