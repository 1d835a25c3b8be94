"""Shannon entropy of the class probabilities (Settles, Active Learning Literature Survey, 2009)."""

import numpy as np

from med_sslal.al.arrays import entropy
from med_sslal.al.criteria.base import BoxCriterion
from med_sslal.al.record import PLAIN, PoolRecord


class Entropy(BoxCriterion):
    """Entropy of the class probabilities: the classifier is torn between classes.

    Formula: s_j = - sum over c of p_jc ln p_jc, in nats, background included, with 0 ln 0 = 0.
    Default aggregate: mean (`sum` would count boxes).
    """

    name = "entropy"

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """Entropy of each box in nats."""
        return entropy(record.section(PLAIN).class_probs)
