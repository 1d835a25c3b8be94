"""Exact small-sample tests against counting, scipy and hand-worked cases."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import rankdata, wilcoxon

from med_sslal.study.paired import holm, signed_rank_p, smallest_p


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.1, 0.2, 0.3, 0.4, 0.5], 0.0625),  # 2 of 32 sign patterns
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 2 / 256),
        ([-0.1, 0.2, 0.3, 0.4, 0.5], 0.125),  # W- = 1: sums 0 and 1, on both sides
        ([0.1, 0.1, 0.1], 0.25),
        # Ranks 2, 2, 2, 4, 5; W- = 2: sums 0 (one way) and 2 (three ways) of 32, on both sides.
        ([0.1, 0.1, -0.1, 0.2, 0.3], 0.25),
        ([0.0, 0.1, 0.2, 0.3], 0.25),  # the zero is dropped
        ([0.0, 0.0, 0.0], 1.0),
        ([0.1], 1.0),
        ([0.1, -0.1], 1.0),
        # 0.1 as three subtractions give it
        ([0.3 - 0.2, 0.4 - 0.3, 0.2 - 0.3], 1.0),
    ],
    ids=["five", "eight", "one_minus", "tied", "tied_mixed", "zero", "zeros", "one", "even", "ulp"],
)
def test_signed_rank_p(differences, p):
    assert signed_rank_p(differences) == pytest.approx(p)
    assert signed_rank_p([-d for d in differences]) == pytest.approx(p)


@pytest.mark.parametrize("n", [3, 5, 8, 12])
def test_signed_rank_p_is_scipys_without_ties_and_the_counted_one_with(n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        free = rng.normal(0.3, 1, n)
        assert signed_rank_p(free) == pytest.approx(wilcoxon(free, method="exact").pvalue)
        tied = rng.choice([-3, -2, -1, 1, 2, 3], n)
        if n <= 8:
            ranks = rankdata(np.abs(tied))
            sums = np.array([ranks @ signs for signs in product((0, 1), repeat=n)])
            seen = ranks[tied > 0].sum()
            p = min(1.0, 2 * min((sums <= seen).mean(), (sums >= seen).mean()))
            assert signed_rank_p(tied) == pytest.approx(p)


def test_smallest_p_is_that_of_differences_of_one_sign():
    for n in (1, 2, 5, 8, 10):
        assert smallest_p(n) == signed_rank_p(np.arange(1, n + 1))
    assert smallest_p(5) == 0.0625


@pytest.mark.parametrize(
    ("given", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # 0.01 x 3, 0.03 x 2, then 0.04 x 1 < 0.06
        ([0.02, 0.01, 0.5, 0.015], [0.045, 0.04, 0.5, 0.045]),  # 0.04; 0.045; 0.04 < 0.045; 0.5
        ([0.6, 0.7], [1.0, 1.0]),
        ([0.03, 0.03], [0.06, 0.06]),
        ([0.2], [0.2]),
        ([], []),
    ],
    ids=["three", "four", "above_1", "equal", "one", "none"],
)
def test_holm(given, adjusted):
    assert holm(given) == pytest.approx(adjusted)
