"""Several criteria at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from med_sslal.al.arrays import ranks_of, round_scores
from med_sslal.al.criteria.base import Criterion
from med_sslal.al.record import PoolRecord


@dataclass(frozen=True)
class Part:
    """One criterion of a combination: its name there, and its weight, more than 0."""

    name: str
    criterion: Criterion
    weight: float


class Combination(Criterion):
    """Several built criteria of distinct names: the weighted mean of their percentile ranks.

    Formula: s_i = sum over parts k of w_k r_ki / sum of w_k, where r_ki = (rank of image i by
    criterion k - 0.5) / N, the worst of N images with rank 1, and ties with their mean rank. So
    criteria of any scale and sign can be combined.
    """

    name = "combination"

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(parts)
        criteria = [part.criterion for part in self.parts]
        self.views = tuple(dict.fromkeys(view for one in criteria for view in one.views))
        self.needs = tuple(dict.fromkeys(need for one in criteria for need in one.needs))

    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """Rate by every part, then combine."""
        return self.columns(record, seed)[self.name]

    def columns(self, record: PoolRecord, seed: int) -> dict[str, np.ndarray]:
        """The combination, and the raw values of every part."""
        parts = {part.name: part.criterion(record, seed) for part in self.parts}
        return {self.name: round_scores(self.combine(list(parts.values()))), **parts}

    def combine(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted mean of percentile ranks, [N] in (0, 1), of the values of each part, [N].

        Example:
            >>> from med_sslal.al.criteria.random import Random
            >>> pair = Combination([Part("a", Random(), 3.0), Part("b", Random(), 1.0)])
            >>> pair.combine([np.array([10.0, 20.0]), np.array([-1.0, -2.0])]).tolist()
            [0.375, 0.625]
        """
        weights = np.array([part.weight for part in self.parts])
        ranks = np.array([ranks_of(column) - 0.5 for column in columns]) / max(len(columns[0]), 1)
        return weights @ ranks / weights.sum()
