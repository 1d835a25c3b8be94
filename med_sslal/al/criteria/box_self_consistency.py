"""Self-consistency of the box head: would it move its own box again?"""

from typing import Any

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.aggregate import Aggregate
from med_sslal.al.criteria.base import BOX_FLOOR, BoxCriterion, confidence
from med_sslal.al.record import PLAIN, RECORD_FLOOR, PoolRecord
from med_sslal.utils.boxes import paired_iou


class BoxSelfConsistency(BoxCriterion):
    """Box self-consistency: the box head would move its own final box again.

    Formula: F_j = IoU(B_j, f(B_j)), where f(B_j) is the box that the box head makes of B_j in place
    of a proposal, for the same class; s_j = P_j (1 - F_j), high where the detector is sure of the
    class and its box has not settled. Source: this project. Default aggregate: top_3, with the
    record's own floor of 0.05. With `confidence` false: s_j = 1 - F_j, score_weighted, with a floor
    of 0.3. It costs one call of the RoI heads on the final boxes, in the same pass.

    Args:
        confidence: Whether P_j weighs the value of a box; false rates the box alone.
    """

    name = "box_self_consistency"
    needs = ("class_probs", "refined_boxes")
    default_aggregate: Aggregate = "top_3"
    default_floor = RECORD_FLOOR

    def __init__(self, *, confidence: bool = True, **boxes_to_images: Any) -> None:
        self.confidence = confidence
        if not confidence:
            self.default_aggregate, self.default_floor = "score_weighted", BOX_FLOOR
        super().__init__(**boxes_to_images)

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """P_j (1 - F_j), or 1 - F_j."""
        section = record.section(PLAIN)
        moved = 1.0 - round_scores(paired_iou(section.boxes, record.column("refined_boxes")))
        return moved * confidence(section) if self.confidence else moved
