"""Representativeness by density (Settles and Craven, EMNLP 2008, information density)."""

import numpy as np

from med_sslal.al.arrays import round_embeddings
from med_sslal.al.criteria.base import BLOCK_IMAGES, Criterion
from med_sslal.al.record import PLAIN, PoolRecord


class Representativeness(Criterion):
    """Representativeness: the image looks like many others of the pool.

    Formula: mean over all pool images k (itself included) of cos(e_i, e_k), the cosine similarity
    of the image embeddings; an all-zero embedding has similarity 0. Alone it picks near-duplicates:
    use it as second stage.
    """

    name = "representativeness"

    def image_values(self, record: PoolRecord, seed: int) -> np.ndarray:
        """Mean cosine similarity, as the product of each unit vector with the mean unit vector."""
        section = record.section(PLAIN)
        total = np.zeros(section.embeddings.shape[1])
        for block in section.blocks(BLOCK_IMAGES):
            total += _unit(block.embeddings).sum(axis=0)
        blocks = section.blocks(BLOCK_IMAGES)
        values = (_unit(block.embeddings) @ total / len(section) for block in blocks)
        return np.concatenate([np.zeros(0), *values])


def _unit(embeddings: np.ndarray) -> np.ndarray:
    """Rounded embeddings of length 1, float64; zero vectors stay zero."""
    rounded = round_embeddings(embeddings)
    norms = np.linalg.norm(rounded, axis=1, keepdims=True)
    return np.divide(rounded, norms, out=np.zeros_like(rounded), where=norms > 0)
