"""Difficulty-calibrated uncertainty (Yang et al., CVPR 2024, the first stage of PPAL)."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from med_sslal.al.arrays import entropy
from med_sslal.al.criteria.base import BoxCriterion, confidence
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.utils.errors import DataError


class ClassDifficultyEntropy(BoxCriterion):
    """Class difficulty entropy: unsure of boxes of the classes that training finds hard.

    Formula: s_j = w_c H(P_j) with H(P) = - P ln P - (1 - P) ln(1 - P), c the label of box j,
    w_c = 1 + alpha beta ln(b d_c + 1), b = e^(1 / alpha) - 1, and d_c in [0, 1] the difficulty of
    the class that training left in the record's header. The weight runs from 1 to 1 + beta.
    Source: Yang, Huang and Crowley, Plug and Play Active Learning for Object Detection, CVPR 2024.
    Default aggregate: mean (the paper's `sum` counts boxes).

    Args:
        alpha: How fast the weight rises: the smaller, the more even a small difficulty counts.
        beta: What the hardest class weighs more than one without any difficulty.
    """

    name = "class_difficulty_entropy"
    needs = ("class_probs", "class_quality")

    def __init__(
        self,
        *,
        alpha: Annotated[float, Ge(0.01)] = 0.3,
        beta: Annotated[float, Ge(0)] = 0.2,
        **boxes_to_images: Any,
    ) -> None:
        super().__init__(**boxes_to_images)
        self.alpha = alpha
        self.beta = beta

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """The weighted entropy of each box."""
        header = record.header
        missing = [name for name in header.class_names if name not in header.class_difficulty]
        if missing:
            raise DataError(
                f"record {record.path} holds no training difficulty of {', '.join(missing)}, which "
                f"{self.name} needs: score the pool with a detector that this program trained"
            )
        difficulty = np.array([header.class_difficulty[name] for name in header.class_names])
        steepness = np.expm1(1 / self.alpha)
        weights = 1 + self.alpha * self.beta * np.log1p(steepness * difficulty)
        section = record.section(PLAIN)
        sure = confidence(section)
        return weights[section.labels - 1] * entropy(np.stack([sure, 1 - sure], axis=1))
