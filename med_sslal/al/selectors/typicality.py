"""Typical images of uncovered clusters (Hacohen, Dekel and Weinshall, ICML 2022, TypiClust)."""

import heapq
from collections.abc import Iterator

import numpy as np

from med_sslal.al.arrays import Points
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Choice, Selector, Values
from med_sslal.al.selectors.k_means_diversity import cluster

# Neighbours that an image is compared with.
N_NEIGHBOURS = 20
# Distances of images of one cluster held at once; a block takes 32 MB.
BLOCK_VALUES = 2**22


class Typicality(Selector):
    """Typical: of the largest clusters without a label, each time the most typical image.

    k-means on the embeddings of candidates and labelled images, k = labelled + budget (or the
    number of distinct embeddings where that is smaller). Again and again the cluster with the
    fewest labelled and chosen images gives one, of several the largest, of these the one with the
    best candidate. It gives the image with the smallest mean distance to its 20 nearest neighbours
    in the cluster (to all others where they are fewer); of several the one that the first
    criterion rates highest. Source: Hacohen, Dekel and Weinshall, Active Learning on a Budget,
    ICML 2022. For the first cycles, with pretrained embeddings. O(images) memory beside the
    embeddings.
    """

    name = "typicality"
    whole_pool = "after random"

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Go from cluster to cluster until the budget is spent."""
        if budget == 0:
            return []
        known = record.labelled_embeddings
        # k-means sees the rows in the record's order, which is that of the ids.
        order = np.argsort(candidates)
        embeddings = np.concatenate([known, record.section(PLAIN).embeddings[candidates[order]]])
        labels = cluster(embeddings, len(known) + budget, seed)
        # Place of each row among the candidates, best first; -1 of a labelled image.
        places = np.concatenate([np.full(len(known), -1), order])
        # Of each cluster what decides whose turn it is, the smallest first, and its candidates.
        queue = []
        for number in range(labels.max() + 1):
            rows = np.flatnonzero(labels == number)
            own = places[rows][places[rows] >= 0]
            if len(own):
                typical = _most_typical(embeddings, places, rows)
                queue.append((len(rows) - len(own), -len(own), int(own.min()), typical))
        heapq.heapify(queue)
        choices: list[Choice] = []
        while len(choices) < budget:
            covered, size, best, typical = heapq.heappop(queue)
            place, reason = next(typical, Choice(-1, ""))
            if place >= 0:
                words = f"with {covered} labelled or chosen" if covered else "without a label"
                choices.append(Choice(int(candidates[place]), f"{reason} of {-size}, {words}"))
                heapq.heappush(queue, (covered + 1, size, best, typical))
        return choices


def _most_typical(embeddings: np.ndarray, places: np.ndarray, rows: np.ndarray) -> Iterator[Choice]:
    """The candidates of a cluster's rows by place, most typical first, each with part of a reason.

    Nothing is computed before the first is asked for.
    """
    points, places = Points(embeddings[rows]), places[rows]
    n_neighbours = min(N_NEIGHBOURS, len(rows) - 1)
    step = max(1, BLOCK_VALUES // len(rows))
    means = np.zeros(len(rows))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        distances = points.squared_to(points.whole[block])
        # With the image itself, at a distance of 0.
        distances.partition(n_neighbours, axis=0)
        # Sorted, as the order of a sum decides its last bits.
        nearest = np.sqrt(np.sort(distances[: n_neighbours + 1], axis=0))
        means[block] = nearest.sum(axis=0) / max(n_neighbours, 1) / Points.UNIT
    for row in np.lexsort((places, means)).tolist():
        if places[row] >= 0:
            near = f"mean distance {means[row]:.3f} to {n_neighbours} neighbours in a cluster"
            yield Choice(int(places[row]), near)
