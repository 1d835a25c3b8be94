"""Core-set selection (Sener and Savarese, ICLR 2018, the greedy k-center)."""

import numpy as np

from med_sslal.al.arrays import (
    EMBEDDING_DECIMALS,
    squared_distances,
    squared_lengths,
    whole_embeddings,
)
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Choice, Selector, Values

# Images that the candidates are compared with at once: with 20,000 candidates a block takes 10 MB.
BLOCK_CENTERS = 64
# Candidates that a round of choices looks at.
N_FARTHEST = 512


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
        points = whole_embeddings(record.section(PLAIN).embeddings[candidates])
        nearest, lengths = np.full(len(candidates), np.inf), squared_lengths(points)
        _approach(nearest, points, lengths, whole_embeddings(record.labelled_embeddings))
        choices: list[Choice] = []
        while len(choices) < budget:
            taken = _round(nearest, points, budget - len(choices))
            places = [place for place, _ in taken]
            choices += [Choice(int(candidates[place]), _reason(far)) for place, far in taken]
            _approach(nearest, points, lengths, points[places])
            # Below every distance, also that of an equal embedding.
            nearest[places] = -1.0
        return choices


def _round(nearest: np.ndarray, points: np.ndarray, budget: int) -> list[tuple[int, float]]:
    """The next choices as far as the farthest candidates alone tell them.

    Distances only fall: whoever among these is still farther than all others were at the start of
    the round is the farthest of all, so the others wait for one product with all that is chosen.
    Gives place and squared distance then of one choice or more, up to `budget`.
    """
    if np.isinf(nearest[0]):
        return [(0, np.inf)]
    n_others = max(0, len(nearest) - N_FARTHEST)
    # With all that tie for the last place, so that the others are strictly nearer.
    farthest = np.flatnonzero(nearest >= np.partition(nearest, n_others)[n_others])
    limit = np.delete(nearest, farthest).max(initial=-1.0)
    own, near = points[farthest], nearest[farthest]
    taken: list[tuple[int, float]] = []
    while len(taken) < budget:
        place = int(near.argmax())
        if near[place] <= limit:
            break
        taken.append((int(farthest[place]), float(near[place])))
        np.minimum(near, squared_distances(own, own[[place]])[:, 0], out=near)
        near[place] = -1.0
    return taken


def _approach(
    nearest: np.ndarray, points: np.ndarray, lengths: np.ndarray, centers: np.ndarray
) -> None:
    """Lower `nearest`, in place, to the squared distance of each point to the nearest center."""
    for start in range(0, len(centers), BLOCK_CENTERS):
        block = centers[start : start + BLOCK_CENTERS]
        distances = squared_distances(points, block, lengths)
        np.minimum(nearest, distances.min(axis=1), out=nearest)


def _reason(squared: float) -> str:
    """How far the image was, in units of the embedding."""
    if np.isinf(squared):
        return "the first to cover the pool, as no image is labelled"
    distance = np.sqrt(squared) / 10**EMBEDDING_DECIMALS
    return f"distance {distance:.3f} to the nearest labelled or chosen image"
