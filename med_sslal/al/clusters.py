"""k-means on image embeddings, the same for any batch size and order of files."""

import numpy as np
from sklearn.cluster import KMeans

from med_sslal.al.arrays import round_embeddings


def cluster(embeddings: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """The cluster of each embedding [N, D], by a seeded k-means: int64 [N].

    There are `n_clusters` of them (at least 1), or as many as distinct embeddings where these are
    fewer. The rows must come in an order that files do not decide.
    """
    rounded = round_embeddings(embeddings)
    distinct = {hash(row.tobytes()) for row in rounded}
    # It may change the embeddings: a copy of them would be the largest thing in memory.
    k_means = KMeans(
        min(n_clusters, len(distinct)), n_init=1, random_state=seed % 2**32, copy_x=False
    )
    return k_means.fit(rounded).labels_.astype(np.int64)
