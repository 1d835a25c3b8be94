"""Calibration: do detections of score s turn out to be right in a share s of the cases?"""

from typing import NamedTuple

import numpy as np

from med_sslal.eval.eval_utils import Columns, on_columns
from med_sslal.eval.hits import Overlap, match

N_BINS = 10


class Reliability(NamedTuple):
    """Scores against hits, in N_BINS bins of equal width from 0 to 1: arrays [N_BINS]."""

    counts: np.ndarray  # int64, detections in each bin.
    mean_scores: np.ndarray  # float64, their mean score, NaN in an empty bin.
    hit_rates: np.ndarray  # float64, the share of them that is right, NaN in an empty bin.
    # Expected calibration error (Guo et al., 2017): the mean over detections of
    # |hit rate - mean score| of their bin; None without a detection.
    error: float | None


@on_columns
def reliability(table: Columns, overlap: Overlap = "iou") -> Reliability:
    """Compare the scores of all detections of a split with how often they are right.

    A detection is right when it overlaps an object of its class as FROC asks, be it the first to
    do so or not. Detections that are ignored (see `hits.match`) are left out.
    The arguments are those of `froc.sensitivity_k_fps`.
    """
    matches = match(table, overlap)
    counted = matches.hit | matches.false_positive
    scores, hit = table.det_scores[counted].astype(np.float64), matches.hit[counted]
    bins = np.clip((scores * N_BINS).astype(np.int64), 0, N_BINS - 1)
    counts = np.bincount(bins, minlength=N_BINS)
    total = np.where(counts, counts, np.nan)
    mean_scores = np.bincount(bins, scores, N_BINS) / total
    hit_rates = np.bincount(bins, hit, N_BINS) / total
    gaps = np.abs(hit_rates - mean_scores) * counts
    error = float(np.nansum(gaps) / counts.sum()) if counts.any() else None
    return Reliability(counts, mean_scores, hit_rates, error)
