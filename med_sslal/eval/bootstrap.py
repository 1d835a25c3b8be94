"""Bootstrap over patients: how far a measure would move with other patients."""

import numpy as np


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
