"""Bootstrap over patients: how far a sensitivity would move with other patients.

Shape shorthand: B draws, P patients, F false positives, L found lesions, K limits of FPs per image.
"""

import numpy as np

_DRAWS_AT_ONCE = 200
_STRIDE = 1024


def patient_weights(n_patients: int, draws: int, seed: int) -> np.ndarray:
    """How often each patient enters each draw of `n_patients` with replacement.

    Returns:
        float32 [draws, n_patients] of whole numbers; every row sums to n_patients.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, n_patients, size=(draws, n_patients))
    flat = drawn + np.arange(draws)[:, None] * n_patients
    counts = np.bincount(flat.ravel(), minlength=draws * n_patients)
    return counts.reshape(draws, n_patients).astype(np.float32)


def resampled_sensitivity(
    weights: np.ndarray,
    limits: np.ndarray,
    fp_scores: np.ndarray,
    fp_patient: np.ndarray,
    found_scores: np.ndarray,
    found_patient: np.ndarray,
    n_lesions: np.ndarray,
    n_images: np.ndarray,
) -> np.ndarray:
    """What `FrocCurve.resampled` gives for the fields of a curve, at limits [K]: float64 [B, K]."""
    n_patients = weights.shape[1]
    n_strides = len(fp_scores) // _STRIDE + 1
    stride = np.arange(len(fp_scores)) // _STRIDE
    per_stride = np.bincount(fp_patient * n_strides + stride, minlength=n_patients * n_strides)
    # Whole numbers far below 2**24: float32 sums are exact.
    per_stride = per_stride.reshape(n_patients, n_strides).astype(np.float32)
    out = np.full((len(weights), len(limits)), np.nan)
    for low in range(0, len(weights), _DRAWS_AT_ONCE):
        drawn = weights[low : low + _DRAWS_AT_ONCE]
        lesions, images = drawn @ n_lesions, drawn @ n_images
        by_stride = np.cumsum(drawn @ per_stride, axis=1, dtype=np.float64)
        hits = np.cumsum(drawn[:, found_patient], axis=1, dtype=np.float64)
        hits = np.concatenate([np.zeros((len(drawn), 1)), hits], axis=1)
        for k, limit in enumerate(limits):
            crossing = _first_above(drawn, limit * images, fp_patient, by_stride)
            n_hits = hits_before(fp_scores, found_scores, crossing)
            some = lesions > 0
            reached = hits[np.arange(len(drawn)), n_hits]
            out[low : low + len(drawn), k][some] = reached[some] / lesions[some]
    return out


def hits_before(
    fp_scores: np.ndarray, found_scores: np.ndarray, crossing: np.ndarray
) -> np.ndarray:
    """Number of lesions found above the score of the false positive that is one too many.

    Equal scores enter together, so a lesion found at just that score does not count. The scores [F]
    and [L] fall; `crossing` holds indices of that false positive, F or more where none is too many.
    """
    bound = np.append(fp_scores, np.float32(-np.inf))[np.minimum(crossing, len(fp_scores))]
    return np.searchsorted(-found_scores, -bound, "left")


def _first_above(
    drawn: np.ndarray, limit: np.ndarray, fp_patient: np.ndarray, by_stride: np.ndarray
) -> np.ndarray:
    """Index of the first false positive with a weighted running count above `limit`: [b].

    Looks at whole strides first, then inside the one stride where the limit is crossed: a running
    count over every false positive of every draw would be thousands of times the work.
    """
    stride = (by_stride <= limit[:, None]).sum(1)
    rows = np.arange(len(drawn))
    before = np.where(stride > 0, by_stride[rows, stride - 1], 0.0)
    index = stride[:, None] * _STRIDE + np.arange(_STRIDE)
    inside = index < len(fp_patient)
    weight = np.zeros(index.shape)
    weight[inside] = drawn[rows[:, None].repeat(_STRIDE, 1)[inside], fp_patient[index[inside]]]
    running = before[:, None] + np.cumsum(weight, axis=1)
    return stride * _STRIDE + (running <= limit[:, None]).sum(1)
