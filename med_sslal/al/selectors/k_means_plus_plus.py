"""D^2 sampling (Arthur and Vassilvitskii, SODA 2007), as BADGE uses it (Ash et al., ICLR 2020)."""

import numpy as np

from med_sslal.al.arrays import Points, ranks_of
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Choice, Selector, Values


class KMeansPlusPlus(Selector):
    """Diverse by chance: draws candidates that rate high and lie far from those drawn before.

    Formula: P(next = i) ~ w_i D_i^2, where D_i is the distance of the image embedding to the
    nearest one drawn before, and w_i the rank of candidate i by the first criterion (worst = 1,
    ties share their mean), so that criteria of any scale and sign can weigh; the first draw is by
    w_i alone. Where only copies of drawn embeddings are left, they follow best first.
    """

    name = "k_means_plus_plus"

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Draw until the budget is spent."""
        score = next(iter(values.values()))
        weights = ranks_of(score[candidates])
        points = Points(record.section(PLAIN).embeddings[candidates])
        generator = np.random.default_rng(seed)
        nearest = np.ones(len(candidates))
        free = np.ones(len(candidates), dtype=bool)
        choices: list[Choice] = []
        for number in range(budget):
            chances = weights * nearest
            total = chances.sum()
            if total > 0:
                place = int(generator.choice(len(candidates), p=chances / total))
            else:
                place = int(free.argmax())
            choices.append(Choice(int(candidates[place]), _reason(number, nearest[place])))
            distances = points.squared_to(points.whole[[place]])[:, 0]
            nearest = distances if number == 0 else np.minimum(nearest, distances)
            # Rounding may leave it a distance from itself.
            nearest[place], free[place] = 0.0, False
        return choices


def _reason(number: int, squared: float) -> str:
    """How far the image was, in units of the embedding."""
    if number == 0:
        return "drawn first, by score"
    distance = np.sqrt(squared) / Points.UNIT
    return f"drawn by score and by distance {distance:.3f} to the nearest image drawn before"
