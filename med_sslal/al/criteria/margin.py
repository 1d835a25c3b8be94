"""Margin sampling (Scheffer, Decomain and Wrobel, IDA 2001)."""

import numpy as np

from med_sslal.al.criteria.base import BoxCriterion
from med_sslal.al.record import PLAIN, PoolRecord


class Margin(BoxCriterion):
    """Small margin: the classifier hesitates between the two most probable classes.

    Formula: s_j = -(p1 - p2), the two highest class probabilities of box j, background included;
    from -1 (sure) to 0 (torn). Default aggregate: mean (`sum` would count boxes).
    """

    name = "margin"

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """The second highest probability less the highest."""
        probs = np.asarray(record.section(PLAIN).class_probs, dtype=np.float64)
        best = np.partition(probs, -2, axis=1)[:, -2:]
        return best[:, 0] - best[:, 1]
