"""The baseline every criterion is held against."""

import numpy as np

from med_sslal.al.criteria.base import Criterion
from med_sslal.al.record import PoolRecord
from med_sslal.utils.util import stable_hash


class Random(Criterion):
    """Random order: the baseline that every other criterion has to beat.

    Each image draws a number in [0, 1) from a hash of the seed and its id, so the order of files
    plays no part. It reads no detection.
    """

    name = "random"
    views: tuple[str, ...] = ()

    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """A uniform number per image."""
        draws = [stable_hash(self.name, seed, name) for name in record.image_ids.tolist()]
        return np.array(draws, dtype=np.float64) / 2.0**63
