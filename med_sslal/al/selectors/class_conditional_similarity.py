"""Class-conditional matching similarity (Yang et al., CVPR 2024, the second stage of PPAL)."""

import numpy as np

from med_sslal.al.arrays import SCORE_DECIMALS
from med_sslal.al.criteria.base import confidence
from med_sslal.al.record import PLAIN, PoolRecord, RecordSection
from med_sslal.al.selectors.base import Choice, Selector, Values

# Similarities of detections held at once; a block takes 64 MB.
BLOCK_VALUES = 2**24
WHOLE = 10**SCORE_DECIMALS


class ClassConditionalSimilarity(Selector):
    """Diverse by content: k-medoids of images whose detections match class by class.

    Formula: S(a -> b) = sum over detections i of image a of P_i max over detections j of b with the
    label of i of cos(f_i, f_j), over sum of P_i; f are RoI features, the cosine counts from 0 on,
    and is 0 where b has no box of that label. Distance of two images = 1 - (S(a -> b) +
    S(b -> a)) / 2. Two images without a detection are alike; one without and one with are not at
    all. The medoids (k = budget) start as a seeded D^2 draw, the best candidate first, and move
    until none is nearer to its cluster. Source: Yang, Huang and Crowley, Plug and Play Active
    Learning for Object Detection, CVPR 2024. Time and memory grow with the square of the
    candidates.
    """

    name = "class_conditional_similarity"
    needs = ("class_probs", "roi_features")

    def select(
        self, record: PoolRecord, candidates: np.ndarray, values: Values, budget: int, seed: int
    ) -> list[Choice]:
        """Take the medoids, best candidate first."""
        features = record.column("roi_features")
        if budget == 0:
            return []
        distances = _distances(record.section(PLAIN), features, candidates)
        medoids, sizes = _k_medoids(distances, budget, np.random.default_rng(seed))
        return [
            Choice(int(candidates[place]), f"stands for {size} of {len(candidates)} candidates")
            for place, size in zip(medoids, sizes, strict=True)
        ]


def _distances(
    section: RecordSection, roi_features: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """1 - similarity of every two candidates, in whole numbers of 1e-4: int32 [K, K]."""
    counts = section.counts[candidates]
    owners = np.repeat(np.arange(len(candidates)), counts)
    shift = section.offsets[candidates] - (np.cumsum(counts) - counts)
    rows = np.arange(len(owners)) + np.repeat(shift, counts)
    labels, sure = section.labels[rows], confidence(section, rows).clip(min=1 / WHOLE)
    features = np.asarray(roi_features[rows], dtype=np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    features = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
    similarity = np.zeros((len(candidates), len(candidates)))
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        _add_class(similarity, features[of_class], sure[of_class], owners[of_class])
    total = np.bincount(owners, sure, len(candidates))
    similarity /= np.where(counts > 0, total, 1.0)[:, None]
    similarity = (similarity + similarity.T) / 2
    empty = counts == 0
    similarity[np.ix_(empty, empty)] = 1.0
    distances = np.rint((1.0 - similarity) * WHOLE).astype(np.int32)
    np.fill_diagonal(distances, 0)
    return distances


def _add_class(
    similarity: np.ndarray, features: np.ndarray, sure: np.ndarray, owners: np.ndarray
) -> None:
    """Add one class's part of sum over i of P_i max over j of cos(f_i, f_j), for each two images.

    The class's detections, R of them with features of length 1, are sorted by image (`owners`).
    """
    images, starts = np.unique(owners, return_index=True)
    step = max(1, BLOCK_VALUES // len(owners))
    for start in range(0, len(owners), step):
        block = slice(start, start + step)
        best = np.maximum.reduceat(features[block] @ features.T, starts, axis=1).clip(min=0)
        present, first = np.unique(owners[block], return_index=True)
        sums = np.add.reduceat(sure[block, None] * best, first, axis=0)
        similarity[np.ix_(present, images)] += sums


def _k_medoids(
    distances: np.ndarray, n_medoids: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Alternate assignment and medoids, ties to the better: ascending medoids, cluster sizes."""
    medoids = _drawn(distances, n_medoids, generator)
    while True:
        cluster = distances[:, medoids].argmin(axis=1)
        # Also where an equal image is a medoid too: so no cluster is ever empty.
        cluster[medoids] = np.arange(n_medoids)
        moved = medoids.copy()
        for number in range(n_medoids):
            members = np.flatnonzero(cluster == number)
            cost = distances[np.ix_(members, members)].sum(axis=0)
            if cost.min() < cost[np.searchsorted(members, medoids[number])]:
                moved[number] = members[cost.argmin()]
        # The cost falls with every move, so this ends.
        if np.array_equal(moved, medoids):
            return medoids, np.bincount(cluster, minlength=n_medoids)
        medoids = np.sort(moved)


def _drawn(distances: np.ndarray, n_medoids: int, generator: np.random.Generator) -> np.ndarray:
    """The best candidate, then others drawn by their squared distance to the nearest one drawn."""
    drawn = [0]
    nearest = distances[0].astype(np.int64) ** 2
    free = np.ones(len(distances), dtype=bool)
    free[0] = False
    while len(drawn) < n_medoids:
        total = np.cumsum(nearest)
        if total[-1]:
            place = int(np.searchsorted(total, generator.integers(total[-1]), side="right"))
        else:
            place = int(free.argmax())
        drawn.append(place)
        free[place] = False
        nearest = np.minimum(nearest, distances[place].astype(np.int64) ** 2)
    return np.sort(drawn)
