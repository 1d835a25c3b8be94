"""What every metric shares: its inputs as columns, checked once, and the shape of its result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.utils.errors import DataError

P = ParamSpec("P")
T = TypeVar("T")
Predictions = Mapping[str, Prediction]
Annotations = Mapping[str, Annotation]
Infos = Mapping[str, ImageInfo]


@dataclass(frozen=True)
class MetricResult:
    """What a metric returns; everything in it can be written as JSON."""

    # Metric key (no `val_` or `test_`) to a number, None where it is undefined; the keys are the
    # same for the same classes, always.
    values: dict[str, float | None]
    # Metric key to its 95 % interval (low, high), None where it is undefined.
    intervals: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # Whatever a report needs besides.


@dataclass(frozen=True)
class Columns:
    """All detections and all annotated boxes of a split, one row per box.

    Boxes are float32 xyxy in ORIGINAL pixels, labels int64, and `*_image` is a position in
    `image_ids`, int64. There are N images, D detections and G annotated boxes.
    """

    image_ids: tuple[str, ...]  # Sorted.
    class_names: tuple[str, ...]  # Label i is `class_names[i - 1]`.
    group: np.ndarray  # int64 [N], each image's patient, numbered from 0 in the order of names.
    det_boxes: np.ndarray  # [D, 4]
    det_labels: np.ndarray  # [D]
    det_scores: np.ndarray  # float32 [D]
    det_image: np.ndarray  # [D]
    gt_boxes: np.ndarray  # [G, 4]
    gt_labels: np.ndarray  # [G]
    gt_ignore: np.ndarray  # bool [G]
    gt_sizes: np.ndarray  # float32 [G] in mm, NaN where unknown.
    gt_subtypes: np.ndarray  # str [G], "" where unknown.
    gt_image: np.ndarray  # [G]

    @property
    def n_groups(self) -> int:
        """Number of patients."""
        return int(self.group.max()) + 1


def columns(
    predictions: Predictions, annotations: Annotations, infos: Infos, class_names: Sequence[str]
) -> Columns:
    """Join a split's predictions and annotations into columns, and check them.

    The arguments are those of `metric.evaluate`; an image without a detection has an empty entry.

    Raises:
        DataError: There is no image; an image has no label or info; a label is outside the
            classes; a score or coordinate is not finite; a box is not xyxy.
    """
    ids = tuple(sorted(predictions))
    if not ids:
        raise DataError("there is no image to evaluate: the split is empty, change eval_split")
    for name, mapping in (("annotation", annotations), ("info", infos)):
        missing = [image_id for image_id in ids if image_id not in mapping]
        if missing:
            raise DataError(f"{len(missing)} evaluated image(s) have no {name}: {missing[0]}, ...")
    found = [predictions[image_id] for image_id in ids]
    truth = [annotations[image_id] for image_id in ids]
    for image_id, prediction in zip(ids, found, strict=True):
        n = len(prediction.scores)
        if prediction.boxes.shape != (n, 4) or prediction.labels.shape != (n,):
            raise DataError(
                f"predictions of {image_id}: boxes, labels and scores must be [N, 4], [N] and [N], "
                f"found {prediction.boxes.shape}, {prediction.labels.shape} and "
                f"{prediction.scores.shape}"
            )
    positions = np.arange(len(ids))
    table = Columns(
        image_ids=ids,
        class_names=tuple(class_names),
        group=np.unique([infos[image_id].group_id for image_id in ids], return_inverse=True)[1],
        det_boxes=np.concatenate([p.boxes for p in found]),
        det_labels=np.concatenate([p.labels for p in found]),
        det_scores=np.concatenate([p.scores for p in found]),
        det_image=positions.repeat([len(p.scores) for p in found]),
        gt_boxes=np.concatenate([a.boxes for a in truth]),
        gt_labels=np.concatenate([a.labels for a in truth]),
        gt_ignore=np.concatenate([a.ignore for a in truth]),
        gt_sizes=np.concatenate([a.sizes_mm for a in truth]),
        gt_subtypes=np.array([name for a in truth for name in a.subtypes], dtype=str),
        gt_image=positions.repeat([len(a.labels) for a in truth]),
    )
    _check(table)
    return table


def on_columns(
    measure: Callable[Concatenate[Columns, P], T],
) -> Callable[Concatenate[Predictions, Annotations, Infos, Sequence[str], P], T]:
    """Let a function of `columns` be called with the arguments of `columns`, as every metric is.

    It raises a DataError where they do not fit.
    """

    def metric(
        predictions: Predictions,
        annotations: Annotations,
        infos: Infos,
        class_names: Sequence[str],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        table = columns(predictions, annotations, infos, class_names)
        return measure(table, *args, **kwargs)

    metric.__doc__, metric.__name__ = measure.__doc__, measure.__name__
    return metric


def _check(table: Columns) -> None:
    """Raise DataError at the first row of `table` that no metric may read."""
    boxes, n_classes = table.det_boxes, len(table.class_names)
    both = ((table.det_labels, table.det_image), (table.gt_labels, table.gt_image))
    in_range = f"in 1..{n_classes}"
    for name, values, good, rule, image in (
        ("score", table.det_scores, np.isfinite(table.det_scores), "finite", table.det_image),
        ("box", boxes, np.isfinite(boxes).all(1), "finite", table.det_image),
        ("box", boxes, (boxes[:, 2:] >= boxes[:, :2]).all(1), "xyxy", table.det_image),
        *(("label", own, (own >= 1) & (own <= n_classes), in_range, image) for own, image in both),
    ):
        if not good.all():
            row = int(np.argmin(good))
            raise DataError(
                f"image {table.image_ids[image[row]]}: a {name} to evaluate must be {rule}, "
                f"found {values[row]}"
            )
