"""Diversity by clustering (Zhdanov, Diverse mini-batch Active Learning, 2019, unweighted)."""

import numpy as np

from med_sslal.al.clusters import cluster
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.al.selectors.base import Choice, Selector, Values


class KMeansDiversity(Selector):
    """Diverse: k-means on the candidates' embeddings, then the best of each cluster in turn.

    k is the budget, or the number of distinct embeddings where that is smaller. Clusters come in
    the order of their best candidates; round r takes the r-th best of every cluster that has one.
    """

    name = "k_means_diversity"

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Go round the clusters until the budget is spent."""
        if budget == 0:
            return []
        # k-means sees the rows in the record's order, which is that of the ids.
        order = np.argsort(candidates)
        labels = np.empty_like(candidates)
        labels[order] = cluster(record.section(PLAIN).embeddings[candidates[order]], budget, seed)
        turn, group = _turns(labels)
        taken = np.lexsort((group, turn))[:budget]
        sizes = np.bincount(group)
        choices = []
        for i in taken:
            own = f"cluster {group[i] + 1} of {len(sizes)} (size {sizes[group[i]]})"
            choices.append(Choice(int(candidates[i]), f"{_ordinal(int(turn[i]) + 1)} of {own}"))
        return choices


def _turns(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Place of each candidate in its cluster, and the cluster's place among clusters, from 0.

    Candidates come best first, their clusters in any numbering: int64 [K].

    Example:
        >>> [part.tolist() for part in _turns(np.array([7, 7, 2]))]
        [[0, 1, 0], [0, 0, 1]]
    """
    rows_of: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        rows_of.setdefault(label, []).append(row)
    turn, cluster = np.empty_like(labels), np.empty_like(labels)
    for number, rows in enumerate(rows_of.values()):
        turn[rows], cluster[rows] = np.arange(len(rows)), number
    return turn, cluster


def _ordinal(number: int) -> str:
    """1 as "best", 2 as "2nd best", and so on."""
    if number == 1:
        return "best"
    suffix = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix} best"
