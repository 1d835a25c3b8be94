"""Core-set selection (Sener and Savarese, ICLR 2018, the greedy k-center)."""

import numpy as np

from med_sslal.al.arrays import Points
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Choice, Selector, Values

# Images that the candidates are compared with at once: with 20,000 candidates a block takes 10 MB.
BLOCK_CENTERS = 64


class KCenter(Selector):
    """Covering: again and again the candidate farthest from all labelled and chosen images.

    Formula: next = argmax over candidates i of min over labelled and chosen k of ||e_i - e_k||,
    on the image embeddings. Of several the one that the first criterion rates highest comes
    first; so does the first of all where nothing is labelled. As an arm of its own put `random`
    first: then it takes from the whole pool. It seeks outliers. O(candidates) memory beside the
    embeddings, O(candidates x (labelled + budget)) time, nearly all of it in matrix products.
    """

    name = "k_center"
    whole_pool = "after random"

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Take the farthest candidate until the budget is spent."""
        points = Points(record.section(PLAIN).embeddings[candidates])
        known, nearest = Points(record.labelled_embeddings).whole, np.full(len(candidates), np.inf)
        for start in range(0, len(known), BLOCK_CENTERS):
            distances = points.squared_to(known[start : start + BLOCK_CENTERS])
            np.minimum(nearest, distances.min(axis=1), out=nearest)
        choices: list[Choice] = []
        for _ in range(budget):
            place = int(nearest.argmax())
            choices.append(Choice(int(candidates[place]), _reason(float(nearest[place]))))
            distances = points.squared_to(points.whole[[place]])
            np.minimum(nearest, distances[:, 0], out=nearest)
            # Below every distance, also that of an equal embedding.
            nearest[place] = -1.0
        return choices


def _reason(squared: float) -> str:
    """How far the image was, in units of the embedding."""
    if np.isinf(squared):
        return "the first to cover the pool, as no image is labelled"
    distance = np.sqrt(squared) / Points.UNIT
    return f"distance {distance:.3f} to the nearest labelled or chosen image"
