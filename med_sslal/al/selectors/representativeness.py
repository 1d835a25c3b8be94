"""Representativeness as a second stage."""

from typing import ClassVar

import numpy as np

from med_sslal.al.criteria.base import Criterion
from med_sslal.al.criteria.representativeness import Representativeness
from med_sslal.al.record import PoolRecord
from med_sslal.al.selectors.base import Ranking, Values


class MostRepresentative(Ranking):
    """Most typical: of the candidates, those most similar to the pool as a whole.

    Re-ranks the candidates by the criterion `representativeness` and takes the best; of two alike
    the one that the first criterion rates higher.
    """

    name = "representativeness"
    criteria: ClassVar[tuple[type[Criterion], ...]] = (Representativeness,)
    words = "representativeness {worth:.4f}, {place} candidates"

    def worth(self, record: PoolRecord, candidates: np.ndarray, values: Values) -> np.ndarray:
        """Mean similarity."""
        return values[self.name][candidates]
