"""The simplest selector."""

from collections.abc import Mapping

import numpy as np

from med_sslal.al.record import PoolRecord
from med_sslal.al.selectors.base import Choice, Selector


class TopK(Selector):
    """Best first: the images that the criterion rates highest, near-duplicates included."""

    name = "top_k"
    views = ()

    def select(
        self,
        record: PoolRecord,
        candidates: np.ndarray,
        values: Mapping[str, np.ndarray],
        budget: int,
        seed: int,
    ) -> list[Choice]:
        """Take the first `budget` candidates."""
        return [Choice(row, "") for row in candidates[:budget].tolist()]
