"""Calibration against hand-worked cases."""

import numpy as np
import pytest

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.calibration import N_BINS, reliability

OBJECT, ELSEWHERE, REGION = (10, 10, 30, 30), (40, 40, 60, 60), (70, 70, 90, 90)


def measured(rows, truth=((OBJECT, False),), overlap="iou"):
    """Rows are (box, score, label); truth is (box, is it an ignore region)."""
    annotation = Annotation(
        np.array([box for box, _ in truth], dtype=np.float32).reshape(-1, 4),
        np.ones(len(truth), dtype=np.int64),
        np.array([ignore for _, ignore in truth], dtype=bool),
    )
    prediction = Prediction(
        np.array([box for box, _, _ in rows], dtype=np.float32).reshape(-1, 4),
        np.array([label for _, _, label in rows], dtype=np.int64),
        np.array([score for _, score, _ in rows], dtype=np.float32),
    )
    infos = {"a": ImageInfo("a", "a", "a.png", (100, 100))}
    return reliability({"a": prediction}, {"a": annotation}, infos, ("x", "y"), overlap)


def test_bins_rates_and_error() -> None:
    result = measured(
        [(OBJECT, 0.92, 1), (OBJECT, 0.96, 1), (ELSEWHERE, 0.94, 1), (ELSEWHERE, 0.25, 1)]
    )
    assert result.counts.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 3]
    assert result.mean_scores[[2, 9]] == pytest.approx([0.25, 0.94])
    assert result.hit_rates[[2, 9]] == pytest.approx([0, 2 / 3])
    assert np.isnan(result.hit_rates[0])
    assert result.error == pytest.approx((3 * (0.94 - 2 / 3) + 0.25) / 4)


@pytest.mark.parametrize(
    ("row", "overlap", "counted", "rate"),
    [
        pytest.param((OBJECT, 1.0, 1), "iou", 1, 1, id="score 1 is in the last bin"),
        pytest.param((OBJECT, 1.0, 2), "iou", 1, 0, id="another class"),
        pytest.param((REGION, 1.0, 1), "iou", 0, None, id="in an ignore region"),
        pytest.param(((12, 12, 20, 20), 1.0, 1), "iou", 1, 0, id="small by IoU"),
        pytest.param(((12, 12, 20, 20), 1.0, 1), "iobb", 1, 1, id="small by IoBB"),
    ],
)
def test_what_counts_as_right(row, overlap, counted, rate) -> None:
    result = measured([row], ((OBJECT, False), (REGION, True)), overlap)
    assert result.counts[N_BINS - 1] == result.counts.sum() == counted
    assert rate is None or result.hit_rates[-1] == rate


def test_no_detection_has_no_error() -> None:
    result = measured([])
    assert result.error is None and result.counts.sum() == 0
