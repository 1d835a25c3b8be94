"""Paired statistics over few seeds: bootstrap intervals, Wilcoxon, Holm.

Shape shorthand: B draws, S seeds, G points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from med_sslal.eval.bootstrap import patient_weights
from med_sslal.study.study_result import Estimate

TAILS = (0.025, 0.975)
"""The quantiles of the draws that bound a 95 % interval."""


@dataclass(frozen=True)
class Bootstrap:
    """Intervals over seeds; every arm meets the same draws, which depend on their number alone."""

    draws: int
    seed: int

    def weights(self, n_seeds: int) -> np.ndarray:
        """Weight of each seed in the mean of every draw with replacement: float64 [B, S]."""
        return patient_weights(n_seeds, self.draws, self.seed).astype(np.float64) / n_seeds

    def interval(self, values: np.ndarray) -> np.ndarray:
        """Ends of the 95 % percentile interval (Efron 1979) of the mean of [S] or [S, G]: [2, ...].

        It is a point where there is one seed.
        """
        return np.quantile(self.weights(len(values)) @ values, TAILS, axis=0)

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Mean over seeds with its interval; no interval with one seed."""
        if len(values) == 1:
            return Estimate(float(values[0]), None)
        low, high = self.interval(np.array(values))
        return Estimate(float(np.mean(values)), (float(low), float(high)))


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (Wilcoxon 1945); 1.0 where nothing differs.

    Zero differences are dropped, and sizes closer than 1e-12 are equal: subtraction of scores does
    not keep more. Exact up to 50 seeds; up to 13 where sizes are equal, beyond by the normal curve.
    """
    left = np.round(np.asarray(differences, dtype=np.float64), 12)
    left = left[left != 0]
    if not len(left):
        return 1.0
    # Loaded where studies are compared: it takes half a second.
    from scipy.stats import wilcoxon

    return float(min(1.0, wilcoxon(left).pvalue))


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
