"""Paired statistics over few seeds: bootstrap intervals, exact Wilcoxon, Holm.

Shape shorthand: B draws, S seeds, G points.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from med_sslal.eval.bootstrap import patient_weights

TAILS = (0.025, 0.975)
"""The quantiles of the draws that bound a 95 % interval."""


def mean_weights(n_seeds: int, draws: int, seed: int) -> np.ndarray:
    """Weights of each seed in the mean of every draw of `n_seeds` seeds with replacement.

    They depend on the number of seeds alone, so every arm meets the same draws.

    Returns:
        float64 [draws, n_seeds]; every row sums to 1.
    """
    return patient_weights(n_seeds, draws, seed).astype(np.float64) / n_seeds


def percentile_interval(drawn: np.ndarray) -> np.ndarray:
    """Ends of the 95 % percentile interval (Efron 1979) of draws [B] or [B, G]: [2] or [2, G]."""
    return np.quantile(drawn, TAILS, axis=0)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test (Wilcoxon 1945).

    Zero differences are dropped, equal sizes share their mean rank, and all 2^n signs of the rest
    are counted, so that ties stay exact; `scipy.stats.wilcoxon` with "exact" ignores them.
    Sizes closer than 1e-12 are equal: subtraction of scores does not keep more.

    Returns:
        1.0 where all differences are zero.
    """
    left = np.round(np.asarray(differences, dtype=np.float64), 12)
    left = left[left != 0]
    doubled = np.rint(2 * rankdata(np.abs(left))).astype(np.int64)
    # Share of the sign patterns with each sum of (doubled) positive ranks.
    share = np.zeros(doubled.sum() + 1)
    share[0] = 1.0
    for rank in doubled:
        moved = np.zeros_like(share)
        moved[rank:] = share[: len(share) - rank]
        share = (share + moved) / 2
    observed = doubled[left > 0].sum()
    tail = min(share[: observed + 1].sum(), share[observed:].sum())
    return float(min(1.0, 2 * tail))


def smallest_p(n_seeds: int) -> float:
    """The smallest p that `signed_rank_p` can give: all differences of one sign."""
    return float(min(1.0, 2.0 ** (1 - n_seeds)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): adjusted p values in the order given.

    The i-th smallest of m is multiplied by m - i + 1, is at least the one before it and at most 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0).tolist()
