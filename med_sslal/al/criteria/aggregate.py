"""From boxes to images: segment reductions over offsets, and the policy for images without boxes.

Shape shorthand: N images, M boxes of all of them; the boxes of image i are the rows `offsets[i]`
to `offsets[i + 1]`.
"""

from typing import Literal

import numpy as np

from med_sslal.al.arrays import SCORE_DECIMALS
from med_sslal.utils.util import stable_hash

Aggregate = Literal["max", "mean", "sum", "top_k", "top_3", "score_weighted"]
EmptyImages = Literal["first", "last", "median", "random"]

TOP_K = 5


def aggregate_boxes(
    values: np.ndarray, scores: np.ndarray, offsets: np.ndarray, how: Aggregate
) -> np.ndarray:
    """Reduce the values [M] of each image's boxes to one: float64 [N], NaN where it has no box.

    `top_k` is the mean of the 5 highest values, `top_3` of the 3 highest, and `score_weighted` the
    sum of P_j s_j over the sum of P_j. Of the `scores` P_j, float64 [M], none counts less than
    1e-4: boxes without any confidence weigh alike instead of dividing by zero.

    Example:
        >>> v, p = np.array([1.0, 3.0, 2.0]), np.array([0.5, 0.5, 0.1])
        >>> aggregate_boxes(v, p, np.array([0, 2, 2, 3]), "mean").tolist()
        [2.0, nan, 2.0]
    """
    counts = np.diff(offsets)
    n_images = len(counts)
    owners = np.repeat(np.arange(n_images), counts)
    if how == "max":
        result = np.full(n_images, -np.inf)
        np.maximum.at(result, owners, values)
    elif how == "sum":
        result = np.bincount(owners, values, n_images)
    elif how in ("top_k", "top_3"):
        k = 3 if how == "top_3" else TOP_K
        order = np.lexsort((-values, owners))
        place = np.arange(len(values)) - np.repeat(offsets[:-1], counts)
        best = order[place < k]
        result = np.bincount(owners[best], values[best], n_images)
        result = result / np.minimum(counts, k).clip(min=1)
    else:
        weights = np.ones(len(values))
        if how == "score_weighted":
            weights = scores.clip(min=10.0**-SCORE_DECIMALS)
        total = np.bincount(owners, weights, n_images)
        result = np.bincount(owners, weights * values, n_images)
        result = result / np.where(counts > 0, total, 1.0)
    return np.where(counts > 0, result, np.nan)


def fill_empty(
    values: np.ndarray, image_ids: np.ndarray, policy: EmptyImages, seed: int
) -> np.ndarray:
    """Give images without a detection, NaN in float64 [N], the value that `policy` says.

    `first` is one above the highest value, `last` one below the lowest, `median` that of the images
    with detections, and `random` the value of one of those, drawn by a seeded hash of the image id.
    All are zero where no image has a detection.
    """
    empty = np.isnan(values)
    known = np.sort(values[~empty])
    if not len(known):
        return np.zeros_like(values)
    filled = values.copy()
    if policy == "random":
        names = image_ids[empty].tolist()
        filled[empty] = known[[stable_hash("empty", seed, name) % len(known) for name in names]]
    else:
        fill = {"first": known[-1] + 1, "last": known[0] - 1, "median": np.median(known)}
        filled[empty] = fill[policy]
    return filled
