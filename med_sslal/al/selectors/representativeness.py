"""Representativeness as a second stage."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from med_sslal.al.criteria.base import Criterion
from med_sslal.al.criteria.representativeness import Representativeness
from med_sslal.al.record import PoolRecord
from med_sslal.al.selectors.base import Choice, Selector


class MostRepresentative(Selector):
    """Most typical: of the candidates, those most similar to the pool as a whole.

    Re-ranks the candidates by the criterion `representativeness` and takes the best; of two alike
    the one that the first criterion rates higher.
    """

    name = "representativeness"
    criteria: ClassVar[tuple[type[Criterion], ...]] = (Representativeness,)

    def select(
        self,
        record: PoolRecord,
        candidates: np.ndarray,
        values: Mapping[str, np.ndarray],
        budget: int,
        seed: int,
    ) -> list[Choice]:
        """Take the `budget` candidates of the highest mean similarity."""
        similarity = values[self.name]
        order = np.argsort(-similarity[candidates], kind="stable")[:budget]
        return [
            Choice(row, f"{self.name} {similarity[row]:.4f}, place {place} of {len(candidates)} "
                   "candidates")
            for place, row in enumerate(candidates[order].tolist(), start=1)
        ]  # fmt: skip
