"""FROC: sensitivity at k false positives per image, with one score threshold for the whole set.

All detections of the split are pooled. A detection finds every lesion of its class that it overlaps
by IoU >= 0.5; a repeat on a found lesion, and a detection that is ignored (see `hits.match`),
count neither way; any other is a false positive. Detections of equal score enter as one block.
Sensitivity at k is the largest recall with k or fewer false positives per image, over all images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from med_sslal.eval.bootstrap import patient_weights
from med_sslal.eval.eval_utils import Columns, MetricResult, on_columns
from med_sslal.eval.hits import MIN_OVERLAP, Matches, Overlap, match

LIMITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""False positives per image at which sensitivity is reported."""

HEADLINE = 4
"""`sens_mean` is the mean over this many first limits."""

LIMIT_KEYS = tuple(f"sens_{limit:g}fp" for limit in LIMITS)

TIGHT = 0.7
"""IoU from which `sensitivity_iou70` takes a lesion as found."""

_CURVE_POINTS = 500

# Draws of patients, and false positives, that are counted in one go.
_DRAWS_AT_ONCE, _STRIDE, _MOST_CELLS = 200, 1024, 2**25


@dataclass(frozen=True)
class FrocCurve:
    """The FROC of one class: P patients, F false positives, L lesions that some detection meets."""

    class_name: str
    images: np.ndarray  # int64 [P], images of each patient, with and without lesions.
    lesions: np.ndarray  # int64 [P], lesions of each patient, found or not.
    fp_scores: np.ndarray  # float32 [F], falling.
    fp_patient: np.ndarray  # int64 [F]
    found_scores: np.ndarray  # float32 [L] best score on each of these lesions, falling.
    found_patient: np.ndarray  # int64 [L]

    @property
    def n_images(self) -> int:
        """Images of all patients."""
        return int(self.images.sum())

    @property
    def n_lesions(self) -> int:
        """Lesions of all patients."""
        return int(self.lesions.sum())

    @property
    def reach(self) -> float:
        """False positives per image where the curve ends, with every detection admitted."""
        return len(self.fp_scores) / self.n_images

    def sensitivity(self, weights: np.ndarray) -> np.ndarray:
        """Sensitivity at each of LIMITS in B draws of patients, of weights float32 [B, P].

        Each draw has its own score threshold. float64 [B, K], NaN where a draw holds no lesion.
        """
        n_patients, n_false = weights.shape[1], len(self.fp_scores)
        # Longer ones where a table of patients and strides would fill memory.
        length = max(_STRIDE, math.ceil(n_patients * n_false / _MOST_CELLS))
        n_strides = n_false // length + 1
        place = self.fp_patient * n_strides + np.arange(n_false) // length
        per_stride = np.bincount(place, minlength=n_patients * n_strides)
        # Whole numbers far below 2**24: float32 sums are exact.
        per_stride = per_stride.reshape(n_patients, n_strides).astype(np.float32)
        out = np.full((len(weights), len(LIMITS)), np.nan)
        for low in range(0, len(weights), _DRAWS_AT_ONCE):
            drawn = weights[low : low + _DRAWS_AT_ONCE]
            lesions, images = drawn @ self.lesions, drawn @ self.images
            by_stride = np.cumsum(drawn @ per_stride, axis=1, dtype=np.float64)
            hits = np.cumsum(drawn[:, self.found_patient], axis=1, dtype=np.float64)
            hits = np.concatenate([np.zeros((len(drawn), 1)), hits], axis=1)
            some = lesions > 0
            for k, limit in enumerate(LIMITS):
                crossing = _first_above(drawn, limit * images, self.fp_patient, by_stride, length)
                # Equal scores enter together: a lesion found at just that score does not count.
                bound = -self._fp_score(crossing)
                n_hits = np.searchsorted(-self.found_scores, bound, "left")
                reached = hits[np.arange(len(drawn)), n_hits]
                out[low : low + len(drawn), k][some] = reached[some] / lesions[some]
        return out

    def score_above(self) -> np.ndarray:
        """Operating points: what scores ABOVE this is admitted: float32 [K], -inf admits all."""
        return self._fp_score(np.floor(np.array(LIMITS) * self.n_images).astype(np.int64))

    def _fp_score(self, place: np.ndarray) -> np.ndarray:
        """The score of the false positive that is one too many, -inf where none is."""
        padded = np.append(self.fp_scores, np.float32(-np.inf))
        return padded[np.minimum(place, len(self.fp_scores))]

    def points(self) -> dict[str, list[float]]:
        """The corners of the curve, from few to many false positives, 500 at most.

        A corner is the least number of false positives per image at a recall; the end is added.

        Returns:
            `fps_per_image`, `sensitivity` and `score` (the least score admitted), equally long.
        """
        if not self.n_lesions:
            return {"fps_per_image": [], "sensitivity": [], "score": []}
        score = np.unique(np.append(self.found_scores, self.fp_scores[-1:]))[::-1]
        fps = np.searchsorted(-self.fp_scores, -score, "right")
        hits = np.searchsorted(-self.found_scores, -score, "right")
        # Of the corners before a limit the last one carries its mark, so it must stay.
        marks = np.searchsorted(fps, np.array(LIMITS) * self.n_images, "right") - 1
        even = np.linspace(0, len(score) - 1, _CURVE_POINTS - len(LIMITS)).round().astype(int)
        keep = np.unique(np.concatenate([even, marks[marks >= 0]])) if len(score) else even[:0]
        return {
            "fps_per_image": (fps[keep] / self.n_images).tolist(),
            "sensitivity": (hits[keep] / self.n_lesions).tolist(),
            "score": score[keep].astype(float).tolist(),
        }


def _first_above(
    drawn: np.ndarray,
    limit: np.ndarray,
    fp_patient: np.ndarray,
    by_stride: np.ndarray,
    length: int,
) -> np.ndarray:
    """Index of the first false positive with a weighted running count above `limit`: [b].

    `by_stride` are the counts at the ends of strides of such a `length`. Looks at whole strides
    first, then inside the one stride where the limit is crossed: a running count over every false
    positive of every draw would be thousands of times the work.
    """
    stride = (by_stride <= limit[:, None]).sum(1)
    rows = np.arange(len(drawn))
    before = np.where(stride > 0, by_stride[rows, stride - 1], 0.0)
    index = stride[:, None] * length + np.arange(length)
    inside = index < len(fp_patient)
    weight = np.zeros(index.shape)
    weight[inside] = drawn[rows[:, None].repeat(length, 1)[inside], fp_patient[index[inside]]]
    running = before[:, None] + np.cumsum(weight, axis=1)
    return stride * length + (running <= limit[:, None]).sum(1)


@on_columns
def sensitivity_k_fps(
    table: Columns, *, draws: int = 1000, seed: int = 0, overlap: Overlap = "iou"
) -> MetricResult:
    """Sensitivity at k false positives per image, with 95 % intervals over patients.

    Per class, then the mean over the classes that have lesions. Evaluate detections down to a
    score of 0.01 or less: a higher floor cuts the curve (`details` says how far it reaches).

    The arguments are those of `metric.evaluate`; `sizes_mm` and `subtypes` of labels are read where
    known, and `overlap` is `iou`, or `iobb` (intersection over the detection's own area).

    Returns:
        Values and intervals of `sens_0.5fp` to `sens_16fp` and `sens_mean` (over 0.5, 1, 2, 4), and
        with several classes `sens_mean/NAME` and so on. A class without lesions is None and left
        out of the mean; an interval needs two patients. `details` holds per class the curve, its
        reach and operating points, and sensitivity by size and by type at those points.
    """
    return _froc(table, draws, seed, overlap, MIN_OVERLAP)


@on_columns
def sensitivity_iou70(table: Columns, *, draws: int = 1000, seed: int = 0) -> MetricResult:
    """`sensitivity_k_fps` where only an IoU >= 0.7 finds a lesion: it sees better boxes.

    A detection between 0.5 and 0.7 is a false positive here.

    Returns:
        As `sensitivity_k_fps`, under `sens70_0.5fp` to `sens70_16fp` and `sens70_mean`.
    """
    found = _froc(table, draws, seed, "iou", TIGHT)
    tight = {key: key.replace("sens_", "sens70_", 1) for key in found.values}
    values = {tight[key]: value for key, value in found.values.items()}
    intervals = {tight[key]: pair for key, pair in found.intervals.items()}
    return MetricResult(values, intervals, found.details)


def _froc(table: Columns, draws: int, seed: int, overlap: Overlap, least: float) -> MetricResult:
    """What `sensitivity_k_fps` gives, with `least` as the overlap of a hit."""
    matches = match(table, overlap, least)
    curves = [froc_curve(table, matches, label) for label in range(1, len(table.class_names) + 1)]
    # The first draw holds each patient once: the data itself.
    once = np.ones((1, table.n_groups), np.float32)
    weights = np.concatenate([once, patient_weights(table.n_groups, draws, seed)])
    drawn = np.stack([curve.sensitivity(weights) for curve in curves], axis=1)
    values: dict[str, float | None] = {}
    intervals: dict[str, tuple[float, float] | None] = {}
    rows = [("", _mean(drawn))]
    if len(curves) > 1:
        rows += [(f"/{c.class_name}", drawn[:, i]) for i, c in enumerate(curves)]
    for suffix, row in rows:
        spreads = [*row.T, row[:, :HEADLINE].mean(1)]
        for key, spread in zip((*LIMIT_KEYS, "sens_mean"), spreads, strict=True):
            values[key + suffix] = _number(spread[0])
            intervals[key + suffix] = _interval(spread[1:], table.n_groups)
    details: dict[str, Any] = {
        "n_images": len(table.image_ids),
        "n_patients": table.n_groups,
        "overlap": overlap,
        "min_overlap": least,
        "draws": draws,
        "seed": seed,
        "classes": {curve.class_name: _describe(curve) for curve in curves},
        **_breakdown(table, matches, curves),
    }
    return MetricResult(values, intervals, details)


def froc_curve(table: Columns, matches: Matches, label: int) -> FrocCurve:
    """Pool one class's false positives and found lesions, best score first."""
    lesion = (table.gt_labels == label) & ~table.gt_ignore
    fp = np.flatnonzero(matches.false_positive & (table.det_labels == label))
    fp = fp[np.argsort(-table.det_scores[fp], kind="stable")]
    found = np.flatnonzero(lesion & np.isfinite(matches.found_score))
    found = found[np.argsort(-matches.found_score[found], kind="stable")]
    patient, n = table.group, table.n_groups
    return FrocCurve(
        class_name=table.class_names[label - 1],
        images=np.bincount(patient, minlength=n),
        lesions=np.bincount(patient[table.gt_image[lesion]], minlength=n),
        fp_scores=table.det_scores[fp],
        fp_patient=patient[table.det_image[fp]],
        found_scores=matches.found_score[found],
        found_patient=patient[table.gt_image[found]],
    )


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean [B, K] of [B, C, K] over the C classes that are defined, NaN where none is."""
    defined = np.isfinite(values)
    n = defined.sum(1)
    total = np.where(defined, values, 0.0).sum(1)
    return np.divide(total, n, out=np.full(total.shape, np.nan), where=n > 0)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _interval(drawn: np.ndarray, n_patients: int) -> tuple[float, float] | None:
    """The central 95 % of the defined draws; one patient has no spread to show."""
    drawn = drawn[np.isfinite(drawn)]
    if n_patients < 2 or not len(drawn):
        return None
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _describe(curve: FrocCurve) -> dict[str, Any]:
    return {
        "n_lesions": curve.n_lesions,
        "curve": curve.points(),
        "max_fps_per_image": curve.reach,
        # Beyond the end the sensitivity of the end stands: a lower score floor could raise it.
        "not_reached": [limit for limit in LIMITS if curve.reach < limit],
        "score_above": dict(zip(LIMIT_KEYS, map(_number, curve.score_above()), strict=True)),
    }


def _breakdown(table: Columns, matches: Matches, curves: Sequence[FrocCurve]) -> dict[str, Any]:
    """Sensitivity by size and by type, each lesion at its class's operating points.

    Sizes of exactly 10 and 30 mm belong to the middle. Lesions of unknown size or type are left
    out of the respective part; a part without lesions is left out too.
    """
    lesion = np.flatnonzero(~table.gt_ignore)
    above = np.stack([curve.score_above() for curve in curves])[table.gt_labels[lesion] - 1]
    found = matches.found_score[lesion, None] > above
    sizes, types = table.gt_sizes[lesion], table.gt_subtypes[lesion]
    by_size = {
        "<10 mm": sizes < 10,
        "10-30 mm": (sizes >= 10) & (sizes <= 30),
        ">30 mm": sizes > 30,
    }
    by_type = {str(name): types == name for name in np.unique(types) if name}
    return {
        title: {name: _part(found[rows]) for name, rows in parts.items() if rows.any()}
        for title, parts in (("by_size", by_size), ("by_type", by_type))
    }


def _part(found: np.ndarray) -> dict[str, float]:
    """Number and sensitivities of a group of lesions, `found` bool [n, K]."""
    rate = found.mean(0)
    return {
        "n_lesions": len(found),
        **dict(zip(LIMIT_KEYS, rate.tolist(), strict=True)),
        "sens_mean": float(rate[:HEADLINE].mean()),
    }
