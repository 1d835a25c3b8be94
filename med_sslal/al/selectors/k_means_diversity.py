"""Diversity by clustering (Zhdanov, Diverse mini-batch Active Learning, 2019, unweighted)."""

import numpy as np

from med_sslal.al.arrays import round_embeddings
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
        clusters: dict[int, list[int]] = {}
        for place, label in enumerate(labels.tolist()):
            clusters.setdefault(label, []).append(place)
        choices = []
        for turn in range(max(map(len, clusters.values()))):
            for number, places in enumerate(clusters.values(), start=1):
                if turn < len(places):
                    own = f"cluster {number} of {len(clusters)} (size {len(places)})"
                    reason = f"{_ordinal(turn + 1)} of {own}"
                    choices.append(Choice(int(candidates[places[turn]]), reason))
        return choices[:budget]


def cluster(embeddings: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """The cluster of each embedding [N, D], by a seeded k-means: int64 [N].

    There are `n_clusters` of them (at least 1), or as many as distinct embeddings where these are
    fewer. The rows must come in an order that files do not decide.
    """
    # Loaded where something is clustered: it takes a second.
    from sklearn.cluster import KMeans

    rounded = round_embeddings(embeddings)
    distinct = {hash(row.tobytes()) for row in rounded}
    # It may change the embeddings: a copy of them would be the largest thing in memory.
    k_means = KMeans(
        min(n_clusters, len(distinct)), n_init=1, random_state=seed % 2**32, copy_x=False
    )
    return k_means.fit(rounded).labels_.astype(np.int64)


def _ordinal(number: int) -> str:
    """1 as "best", 2 as "2nd best", and so on."""
    if number == 1:
        return "best"
    suffix = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix} best"
