"""The registry of metrics, and the one call that computes several of them."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.config.signature import load_metric
from med_sslal.eval.box_quality import box_quality
from med_sslal.eval.coco_eval import coco_ap
from med_sslal.eval.eval_utils import MetricResult
from med_sslal.eval.froc import sensitivity_iou70, sensitivity_k_fps
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown

logger = logging.getLogger(__name__)

Metric = Callable[..., MetricResult]
"""Called as metric(predictions, annotations, infos, class_names, draws=..., seed=...)."""

METRICS: dict[str, Metric] = {
    "sensitivity_k_fps": sensitivity_k_fps,
    "sensitivity_iou70": sensitivity_iou70,
    "coco_ap": coco_ap,
    "box_quality": box_quality,
}


def evaluate(
    names: Sequence[str],
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    infos: Mapping[str, ImageInfo],
    class_names: Sequence[str],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compute the named metrics on one split.

    Args:
        names: Names of METRICS, or a user's own as `module.function`.
        predictions: Image id to detections in ORIGINAL pixels; these are the images that count.
        annotations: Labels of at least these images.
        infos: Infos of at least these images.
        class_names: Names without background.
        draws: Bootstrap draws of the metrics that have intervals; 0 makes no interval.
        seed: Seed of the draws.

    Returns:
        A JSON object: `values` and `intervals` by metric key (without `val_` or `test_`), and
        `details` by metric name.

    Raises:
        ConfigError: An unknown metric, or one that returns no MetricResult.
        DataError: The inputs do not fit.
    """
    merged: dict[str, Any] = {"values": {}, "intervals": {}, "details": {}}
    for name in names:
        if name not in METRICS and "." not in name:
            raise ConfigError(unknown("metric", name, METRICS))
        metric = METRICS.get(name) or load_metric(name)
        result = metric(predictions, annotations, infos, class_names, draws=draws, seed=seed)
        if not isinstance(result, MetricResult):
            raise ConfigError(
                f"metric '{name}' must return a MetricResult, found {type(result).__name__}"
            )
        for key, value in result.values.items():
            if value is not None and not math.isfinite(value):
                text = "metric '%s': %s is %s, which is taken as undefined; return None for that"
                logger.warning(text, name, key, value)
        merged["values"] |= result.values
        merged["intervals"] |= {key: pair and list(pair) for key, pair in result.intervals.items()}
        merged["details"][name] = result.details
    found: dict[str, dict[str, Any]] = _defined(merged)
    return found


def _defined(value: Any) -> Any:
    """Plain values of which JSON holds every one: None for those that are not finite."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _defined(item) for key, item in value.items()}
    return [_defined(item) for item in value] if isinstance(value, list | tuple) else value


def metric_keys(names: Sequence[str], class_names: Sequence[str]) -> set[str]:
    """Every key that the named metrics give for these classes, for a check before training.

    The metrics themselves are asked, on one empty image; ConfigError where one is unknown.
    """
    image = ImageInfo("", "", "", (1, 1))
    no_box, no_label = {"": Prediction.empty()}, {"": Annotation.empty()}
    return set(evaluate(names, no_box, no_label, {"": image}, class_names, draws=0)["values"])
