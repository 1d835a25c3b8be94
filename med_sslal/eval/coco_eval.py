"""COCO average precision by pycocotools or faster-coco-eval, with their sharp edges covered."""

import contextlib
import importlib.util
import io
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from med_sslal.eval.coco_utils import to_coco_objects
from med_sslal.eval.eval_utils import Columns, MetricResult, on_columns
from med_sslal.eval.hits import MIN_OVERLAP

Backend = Literal["auto", "pycocotools", "faster_coco_eval"]


@on_columns
def coco_ap(
    table: Columns, *, draws: int = 1000, seed: int = 0, backend: Backend = "auto"
) -> MetricResult:
    """COCO average precision at IoU 0.5 (`AP50`), at 0.75 (`AP75`), and over 0.5 to 0.95 (`AP`).

    The 100 best detections of a class in an image count, as COCO has it.

    The arguments are those of `metric.evaluate`; `draws` and `seed` are not read, as average
    precision has no interval here. `backend` is what compares: auto = faster_coco_eval where it is
    installed. Both give the same numbers.

    Returns:
        `AP50`, `AP75` and `AP`, and with several classes `AP50/NAME` and so on. A class without
        an annotated box is None and left out of the mean; without any detection the values are 0.
    """
    if backend == "auto":
        fast = importlib.util.find_spec("faster_coco_eval") is not None
        backend = "faster_coco_eval" if fast else "pycocotools"
    if backend == "faster_coco_eval":
        from faster_coco_eval import COCO as FastCOCO
        from faster_coco_eval import COCOeval_faster

        precision = _precision(*to_coco_objects(table), FastCOCO, COCOeval_faster)
    else:
        # It reports by print, whatever one wants.
        with contextlib.redirect_stdout(io.StringIO()):
            precision = _precision(*to_coco_objects(table), COCO, COCOeval)
    values: dict[str, float | None] = {}
    # Of COCO's thresholds 0.5, 0.55, ... 0.95.
    parts = (("AP50", slice(0, 1)), ("AP75", slice(5, 6)), ("AP", slice(None)))
    for key, thresholds in parts:
        per_class = precision[thresholds].mean((0, 1))
        defined = per_class[per_class >= 0]
        values[key] = float(defined.mean()) if len(defined) else None
        if len(table.class_names) > 1:
            for name, value in zip(table.class_names, per_class.tolist(), strict=True):
                values[f"{key}/{name}"] = value if value >= 0 else None
    return MetricResult(values)


def _precision(
    truth: dict[str, Any], found: dict[str, Any], coco: Callable[[], Any], evaluation: type[Any]
) -> np.ndarray:
    """Precision by classes that share COCO's interface.

    float64 [T thresholds, R recalls, K classes] at the last maxDets (100), -1 where there is no
    box.
    """
    crowd = defaultdict(list)
    for row in truth["annotations"]:
        crowd[row["image_id"], row["category_id"]].append(bool(row["iscrowd"]))

    class Evaluation(evaluation):
        """COCO's evaluation with this program's rule for ignore regions.

        COCO ignores a detection when the share of its area in a crowd region reaches the IoU
        threshold of the moment, 0.5 to 0.95. Here half of its area is enough at every threshold.
        """

        def computeIoU(self, imgId: int, catId: int) -> Any:
            """Overlaps [detections, boxes], those with crowd regions made 0 or 1."""
            overlaps = super().computeIoU(imgId, catId)
            regions = crowd[imgId, catId]
            if len(overlaps) and any(regions):
                overlaps[:, regions] = np.asarray(overlaps)[:, regions] >= MIN_OVERLAP
            return overlaps

    indexed = []
    for content in (truth, found):
        # Without the detour of `loadRes`, which fails on an empty list.
        indexed.append(coco())
        indexed[-1].dataset = content
        indexed[-1].createIndex()
    run = Evaluation(*indexed, iouType="bbox")
    run.params.areaRng = run.params.areaRng[:1]
    run.params.areaRngLbl = run.params.areaRngLbl[:1]
    run.evaluate()
    run.accumulate()
    # The backends differ in the last bit and in memory layout, and so would means over them.
    return np.ascontiguousarray(run.eval["precision"].round(14))[:, :, :, 0, -1]
