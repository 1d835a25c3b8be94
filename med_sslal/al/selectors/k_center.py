"""Core-set selection (Sener and Savarese, ICLR 2018, the greedy k-center)."""

from collections.abc import Mapping

import numpy as np

from med_sslal.al.arrays import EMBEDDING_DECIMALS, squared_distances, whole_embeddings
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Choice, Selector

# Labelled images compared at once: with 20,000 candidates a block takes 10 MB.
BLOCK_LABELLED = 64


class KCenter(Selector):
    """Covering: again and again the candidate farthest from all labelled and chosen images.

    Formula: next = argmax over candidates i of min over labelled and chosen k of ||e_i - e_k||,
    on the image embeddings. Of several the one that the first criterion rates highest comes
    first; so does the first of all where nothing is labelled. As an arm of its own put `random`
    first with `candidate_factor: null`. It seeks outliers. O(candidates) memory beside the
    embeddings, O(candidates x (labelled + budget)) time.
    """

    name = "k_center"

    def select(
        self,
        record: PoolRecord,
        candidates: np.ndarray,
        values: Mapping[str, np.ndarray],
        budget: int,
        seed: int,
    ) -> list[Choice]:
        """Take the farthest candidate until the budget is spent."""
        points = whole_embeddings(record.section(PLAIN).embeddings[candidates])
        known = whole_embeddings(record.labelled_embeddings)
        nearest = np.full(len(candidates), np.inf)
        for start in range(0, len(known), BLOCK_LABELLED):
            distances = squared_distances(points, known[start : start + BLOCK_LABELLED])
            np.minimum(nearest, distances.min(axis=1), out=nearest)
        choices = []
        for _ in range(budget):
            place = int(nearest.argmax())
            choices.append(Choice(int(candidates[place]), _reason(nearest[place])))
            np.minimum(nearest, squared_distances(points, points[[place]])[:, 0], out=nearest)
            # Below every distance, also that of an equal embedding.
            nearest[place] = -1.0
        return choices


def _reason(squared: float) -> str:
    """How far the image was, in units of the embedding."""
    if np.isinf(squared):
        return "the first to cover the pool, as no image is labelled"
    distance = np.sqrt(squared) / 10**EMBEDDING_DECIMALS
    return f"distance {distance:.3f} to the nearest labelled or chosen image"
