"""Class balance (Yu et al., CVPR Workshops 2022, the second stage of CALD)."""

import numpy as np

from med_sslal.al.arrays import js_divergence, round_scores
from med_sslal.al.criteria.base import BLOCK_IMAGES
from med_sslal.al.record import PLAIN, PoolRecord, RecordSection
from med_sslal.al.selectors.base import Ranking, Values


class ClassBalance(Ranking):
    """Balancing: the candidates whose predicted classes differ most from the labelled set's.

    Formula: JS(q_i, l), the Jensen-Shannon divergence in bits, with q_i the foreground
    probabilities of image i summed over its boxes and scaled to sum to 1, and l the share of each
    class among the labelled boxes; the highest first. Source: Yu, Zhu, Yang and Chen,
    Consistency-based Active Learning for Object Detection, CVPR Workshops 2022 (there a softmax of
    the best score of each class). Of two alike, and so always with one class or without a labelled
    box, the one that the first criterion rates higher; images without a detection differ by 0.
    """

    name = "class_balance"
    needs = ("class_probs",)
    words = "classes {worth:.4f} bits from the labelled set's, {place} candidates"

    def worth(self, record: PoolRecord, candidates: np.ndarray, values: Values) -> np.ndarray:
        """Divergence from the labelled boxes per class."""
        header = record.header
        counts = [header.class_counts.get(name, 0) for name in header.class_names]
        labelled = np.array(counts, dtype=np.float64)
        blocks = record.section(PLAIN).blocks(BLOCK_IMAGES)
        found = (_divergence(block, labelled) for block in blocks)
        return round_scores(np.concatenate([np.zeros(0), *found]))[candidates]


def _divergence(section: RecordSection, labelled: np.ndarray) -> np.ndarray:
    """Divergence of every image from the labelled boxes per class: float64 [N], not rounded."""
    owners = section.owners
    predicted = np.stack(
        [np.bincount(owners, column, len(section)) for column in section.class_probs[:, 1:].T],
        axis=1,
    )
    total = predicted.sum(axis=1)
    known = (total > 0) & (labelled.sum() > 0)
    divergence = np.zeros(len(section))
    shares = predicted[known] / total[known, None]
    divergence[known] = js_divergence(shares, labelled / max(labelled.sum(), 1.0))
    return divergence
