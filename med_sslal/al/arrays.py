"""Small array functions of this room: distances, entropies, and the rounding before a ranking.

Raw fp32 outputs differ by about 5e-7 between batch sizes and thread counts. What decides an order
is therefore rounded first: scores and criterion values to 1e-4, embeddings to 1e-3.
"""

import numpy as np
from scipy.special import entr, rel_entr

SCORE_DECIMALS = 4
EMBEDDING_DECIMALS = 3


def round_scores(scores: np.ndarray) -> np.ndarray:
    """Scores or criterion values as float64, rounded to 1e-4, without negative zeros."""
    # The mean of two rounded values is often exactly half a unit; the first rounding takes off the
    # last bits, which the order of a sum decides, before they decide which way the half goes.
    return np.round(np.round(np.asarray(scores, dtype=np.float64), 10), SCORE_DECIMALS) + 0.0


def round_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings as float64, rounded to 1e-3, without negative zeros."""
    rounded = np.array(embeddings, dtype=np.float64)
    np.round(rounded, EMBEDDING_DECIMALS, out=rounded)
    return np.add(rounded, 0.0, out=rounded)


def ranks_of(values: np.ndarray) -> np.ndarray:
    """Ranks of [N] from 1, the lowest, on; ties have their mean rank: float64 [N]."""
    # Loaded where something is chosen: it takes half a second, and most commands choose nothing.
    from scipy.stats import rankdata

    return np.asarray(rankdata(values), dtype=np.float64)


class Points:
    """Embeddings [N, D] as whole numbers of 1 / UNIT, and their squared distances.

    Products and sums are exact for embeddings shorter than 4e4, so neither threads nor the order of
    a sum can tell two equal distances apart.

    Example:
        >>> points = Points(np.array([[0.0, 0.0], [3.0, 4.0]]))
        >>> np.sqrt(points.squared_to(points.whole[[0]])).tolist()
        [[0.0], [5000.0]]
    """

    UNIT = 10**EMBEDDING_DECIMALS

    def __init__(self, embeddings: np.ndarray) -> None:
        """Round them: `whole` is float64 [N, D]."""
        scaled = np.multiply(embeddings, self.UNIT, dtype=np.float64)
        self.whole = np.rint(scaled, out=scaled)
        self._lengths = np.einsum("nd,nd->n", scaled, scaled)

    def squared_to(self, centers: np.ndarray) -> np.ndarray:
        """Squared distance of each point to each of the whole centers [K, D]: float64 [N, K]."""
        squared = self.whole @ centers.T
        squared *= -2
        squared += self._lengths[:, None]
        squared += np.einsum("kd,kd->k", centers, centers)
        return np.maximum(squared, 0.0, out=squared)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation of [N] and [N], ties with their mean rank, rounded to 1e-4.

    None where either has fewer than two distinct values.

    Example:
        >>> rank_correlation(np.array([1, 2, 3]), np.array([10, 30, 20]))
        0.5
    """
    if min(len(np.unique(column)) for column in (first, second)) < 2:
        return None
    return float(round_scores(np.corrcoef(ranks_of(first), ranks_of(second))[0, 1]))


def entropy(probs: np.ndarray) -> np.ndarray:
    """Shannon entropy of each row of [M, C] in nats, with 0 ln 0 = 0: float64 [M].

    Example:
        >>> entropy(np.array([[0.5, 0.5], [0.0, 1.0]])).round(4).tolist()
        [0.6931, 0.0]
    """
    return entr(np.asarray(probs, dtype=np.float64)).sum(axis=1)


def js_divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of row i of `first` and row i of `second`, [M, C], in bits.

    Formula: (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2. Its square root is a distance.
    float64 [M]: 0 for equal rows, 1 for rows without a class in common.

    Example:
        >>> js_divergence(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])).tolist()
        [1.0]
    """
    p, q = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    middle = (p + q) / 2
    divergence = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=1) / (2 * np.log(2))
    return divergence.clip(min=0.0)
