"""The baseline that criteria have to beat where most images hold no object."""

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.random import Random
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.utils.util import stable_hash

# An image with a detection of this score or more is one with foreground.
FOREGROUND = 0.3


class ForegroundRandom(Random):
    """Random, every other image with a detection: the baseline where most images are empty.

    The ranks alternate between a random image that has a detection with a score of 0.3 or more and
    a random one of all, of those that are left; where none of the first kind is left, all are of
    the second. The value is minus the rank. Each image draws two numbers from hashes of the seed
    and its id, so the order of files plays no part. Images without a detection are of the second
    kind and need no rule of their own. A baseline of re-evaluations of active learning on medical
    volumes.
    """

    name = "foreground_random"
    views = (PLAIN,)

    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """Minus the rank, from -1 down."""
        section = record.section(PLAIN)
        found = np.zeros(len(section), dtype=bool)
        found[section.owners[round_scores(section.scores) >= FOREGROUND]] = True
        names = section.image_ids.tolist()
        draws = [stable_hash(self.name, "foreground", seed, name) for name in names]
        foreground = np.array(draws, dtype=np.int64).argsort(kind="stable")
        kinds = (foreground[found[foreground]], super().image_values(record, seed).argsort())
        values = np.zeros(len(section))
        for place, row in enumerate(_alternate(*(kind.tolist() for kind in kinds))):
            values[row] = -1.0 - place
        return values


def _alternate(first: list[int], second: list[int]) -> list[int]:
    """In turn the next of `first` and of `second` that is not taken yet, until both are used up.

    Example:
        >>> _alternate([3, 1], [1, 0, 2, 3])
        [3, 1, 0, 2]
    """
    queues, taken = [iter(first), iter(second)], dict[int, None]()
    for turn in range(2 * max(len(first), len(second))):
        for row in queues[turn % 2]:
            if row not in taken:
                taken[row] = None
                break
    return list(taken)
