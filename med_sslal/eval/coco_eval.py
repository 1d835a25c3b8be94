"""COCO average precision by pycocotools, with its sharp edges covered."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.coco_utils import to_coco_objects
from med_sslal.eval.eval_utils import MetricResult, columns
from med_sslal.eval.matching import MIN_OVERLAP


def coco_ap(
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    infos: Mapping[str, ImageInfo],
    class_names: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> MetricResult:
    """COCO average precision: at IoU 0.5 (`AP50`), and averaged over IoU 0.5 to 0.95 (`AP`).

    The 100 best detections of a class in an image count, as COCO has it.

    Args:
        predictions: Image id to detections in ORIGINAL pixels; these are the images that count.
        annotations: Image id to label.
        infos: Image id to info.
        class_names: Names without background.
        draws: Not read: average precision has no interval here. It stands for the one signature
            that all metrics share.
        seed: Not read either.

    Returns:
        `AP50` and `AP`, and with several classes `AP50/NAME` and `AP/NAME`. A class without an
        annotated box is None and left out of the mean; without any detection the values are 0.

    Raises:
        DataError: The inputs do not fit (see `eval_utils.columns`).
    """
    table = columns(predictions, annotations, infos, class_names)
    # pycocotools reports by print, whatever one wants.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _Evaluation(*map(_indexed, to_coco_objects(table)), iouType="bbox")
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
    # [T thresholds, R recalls, K classes] at the last maxDets (100); -1 where there is no box.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    values: dict[str, float | None] = {}
    for key, thresholds in (("AP50", slice(0, 1)), ("AP", slice(None))):
        per_class = precision[thresholds].mean((0, 1))
        defined = per_class[per_class >= 0]
        values[key] = float(defined.mean()) if len(defined) else None
        if len(class_names) > 1:
            for name, value in zip(class_names, per_class.tolist(), strict=True):
                values[f"{key}/{name}"] = value if value >= 0 else None
    return MetricResult(values)


def _indexed(content: dict[str, Any]) -> COCO:
    """A COCO object without the detour of `loadRes`, which fails on an empty list."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


class _Evaluation(COCOeval):
    """COCO's evaluation with this program's rule for ignore regions.

    COCO ignores a detection when the share of its area in a crowd region reaches the IoU threshold
    of the moment, 0.5 to 0.95. Here half of its area is enough at every threshold.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """Overlaps [detections, boxes], those with crowd regions made 0 or 1."""
        overlaps = super().computeIoU(imgId, catId)
        crowd = [bool(row["iscrowd"]) for row in self._gts[imgId, catId]]
        if len(overlaps) and any(crowd):
            overlaps[:, crowd] = np.asarray(overlaps)[:, crowd] >= MIN_OVERLAP
        return overlaps
