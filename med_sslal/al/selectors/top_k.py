"""The simplest selector."""

import numpy as np

from med_sslal.al.record import PoolRecord
from med_sslal.al.selectors.base import Ranking, Values


class TopK(Ranking):
    """Best first: the images that the criterion rates highest, near-duplicates included."""

    name = "top_k"
    views = ()

    def worth(self, record: PoolRecord, candidates: np.ndarray, values: Values) -> np.ndarray:
        """The same for all, which come in the criterion's order."""
        return np.zeros(len(candidates))
