"""Consistency under mirroring (after Jeong et al., NeurIPS 2019, and Elezi et al., CVPR 2022)."""

import numpy as np

from med_sslal.al.arrays import js_divergence
from med_sslal.al.criteria.aggregate import Aggregate
from med_sslal.al.criteria.base import BoxCriterion
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.view_matches import best_matches

FLIP = "flip"


class FlipConsistency(BoxCriterion):
    """Flip consistency: the mirrored image gives other boxes or other classes.

    Formula: s_j = 1 - IoU(B_j, B_k) + sqrt(JS(p_j, p_k)), where k is the box of the mirrored pass,
    mirrored back, that overlaps B_j most (of several, the one of the nearest classes), and JS the
    Jensen-Shannon divergence in bits, its root the distance; from 0 to 2, and 2 where no box
    overlaps. Source: the consistency losses of Jeong et al., NeurIPS 2019, as Elezi et al., CVPR
    2022, turned them into a score. Default aggregate: score_weighted. Costs one more pass.
    """

    name = "flip_consistency"
    views = (PLAIN, FLIP)
    default_aggregate: Aggregate = "score_weighted"

    def box_values(self, record: PoolRecord) -> np.ndarray:
        """How far each box and its classes are from their mirror image."""
        plain, flipped = record.section(PLAIN), record.section(FLIP)
        matches = best_matches(plain, flipped)
        distance = np.ones(len(matches.iou))
        divergence = js_divergence(
            plain.class_probs[matches.rows], flipped.class_probs[matches.partners]
        )
        np.minimum.at(distance, matches.rows, np.sqrt(divergence))
        return 1.0 - matches.iou + distance
