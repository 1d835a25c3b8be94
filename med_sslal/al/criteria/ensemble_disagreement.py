"""Disagreement of an ensemble (Houlsby et al., 2011, BALD), and the same of its boxes."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Interval

from med_sslal.al.arrays import entropy
from med_sslal.al.criteria.base import BoxCriterion
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.utils.boxes import paired_iou


class EnsembleDisagreement(BoxCriterion):
    """Ensemble disagreement: passes with dropout differ about class and box.

    Formula: s_j = H(mean over t of p_jt) - mean over t of H(p_jt) + 1 - mean over t of IoU(B_jt,
    mean over t of B_jt), where t runs over stochastic passes of the box head on the proposal of
    box j, and H is Shannon's entropy in nats. Source: the first part is BALD (Houlsby, Huszar,
    Ghahramani and Lengyel, Bayesian Active Learning for Classification and Preference Learning,
    2011), the part on boxes this project's. Default aggregate: mean. The detector needs dropout;
    its backbone runs once.

    Args:
        passes: Stochastic passes of the box head.
    """

    name = "ensemble_disagreement"

    def __init__(
        self, *, passes: Annotated[int, Interval(ge=2, le=100)] = 5, **boxes_to_images: Any
    ) -> None:
        super().__init__(**boxes_to_images)
        self.members = tuple(f"dropout_{number}" for number in range(1, passes + 1))
        self.views = (PLAIN, *self.members)

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """Disagreement of the class vectors plus that of the boxes."""
        plain = record.section(PLAIN)
        members = [record.section(view) for view in self.members]
        probs, boxes = np.zeros(plain.class_probs.shape), np.zeros(plain.boxes.shape)
        doubt, overlap = np.zeros(len(boxes)), np.zeros(len(boxes))
        for member in members:
            probs += member.class_probs
            boxes += member.boxes
            doubt += entropy(member.class_probs)
        boxes /= len(members)
        for member in members:
            overlap += paired_iou(member.boxes, boxes)
        return entropy(probs / len(members)) + 1.0 - (doubt + overlap) / len(members)
