"""How detections or pseudo-labels compare with labels, class by class."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.box_quality import found_overlaps
from med_sslal.eval.eval_utils import Columns, columns
from med_sslal.eval.hits import match


class Quality(NamedTuple):
    """How right the pseudo-labels of a class are; None where nothing could be counted."""

    precision: float | None  # Objects met over objects met plus boxes that meet none.
    recall: float | None  # Objects met over all objects.
    mean_iou: float | None  # Of the objects found, as `box_quality` counts them.

    @classmethod
    def of(cls, counts: Sequence[float]) -> "Quality":
        """From a row of `graded`, or the sum of several."""
        met, false, objects, found, overlap = counts
        return cls(
            met / (met + false) if met + false else None,
            met / objects if objects else None,
            overlap / found if found else None,
        )


def found_and_false(
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    class_names: Sequence[str],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Match detections with objects of their class at IoU 0.5.

    The images of `annotations` count; one without an entry in `predictions` has no detection.

    Returns:
        Class name to (best score on each object, -inf where it was not found; scores of the
        detections that meet no object and lie in no ignore region): float64, rounded to 1e-4.
    """
    if not annotations:
        return {name: (np.zeros(0), np.zeros(0)) for name in class_names}
    table = _table(predictions, annotations, class_names)
    matches = match(table)
    result = {}
    for number, name in enumerate(class_names, start=1):
        found = matches.found_score[(table.gt_labels == number) & ~table.gt_ignore]
        false = table.det_scores[(table.det_labels == number) & matches.false_positive]
        result[name] = round_scores(found), round_scores(false)
    return result


def unmatched(
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    thresholds: Mapping[str, float],
) -> dict[str, Annotation]:
    """Detections from their class's threshold on that meet no object, as ignore regions.

    By image id, of the images of `annotations` that have any; `thresholds` are by class name, in
    the order of the labels.
    """
    if not annotations:
        return {}
    table = _table(predictions, annotations, tuple(thresholds))
    lowest = np.array(list(thresholds.values()))
    wide = (table.det_boxes[:, 2:] > table.det_boxes[:, :2]).all(1)
    sure = round_scores(table.det_scores) >= lowest[table.det_labels - 1]
    free = match(table).false_positive & sure & wide
    regions = {}
    for place in np.unique(table.det_image[free]).tolist():
        rows = np.flatnonzero(free & (table.det_image == place))
        no, yes = np.zeros(len(rows), dtype=bool), np.ones(len(rows), dtype=bool)
        boxes = table.det_boxes[rows].astype(np.float32)
        regions[table.image_ids[place]] = Annotation(boxes, table.det_labels[rows], yes, no)
    return regions


def _table(
    predictions: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    class_names: Sequence[str],
) -> Columns:
    """Columns of the images of `annotations`; patients and sizes are made up, and not read."""
    complete = {name: predictions.get(name, Prediction.empty()) for name in annotations}
    infos = {name: ImageInfo(name, name, "", (0, 0)) for name in annotations}
    return columns(complete, annotations, infos, class_names)


def graded(
    given: Mapping[str, Prediction],
    annotations: Mapping[str, Annotation],
    class_names: Sequence[str],
) -> np.ndarray:
    """What `Quality.of` a class needs: float64 [K, 5], to be added up over images.

    Over the images of `given` that `annotations` has: objects met, boxes that meet none, objects,
    objects found as `box_quality` counts them, and the sum of their IoUs.
    """
    truth = {name: annotations[name] for name in given if name in annotations}
    counts = np.zeros((len(class_names), 5))
    if not truth:
        return counts
    labels, overlaps = found_overlaps(_table(given, truth, class_names))
    outcome = found_and_false(given, truth, class_names)
    for number, (found, false) in enumerate(outcome.values()):
        fits = overlaps[labels == number + 1]
        counts[number] = (found > 0).sum(), len(false), len(found), len(fits), fits.sum()
    return counts


def hidden_truth_quality(
    pseudo: Mapping[str, Annotation],
    annotations: Mapping[str, Annotation],
    class_names: Sequence[str],
) -> dict[str, Quality]:
    """Grade `PseudoLabels.labels` by the truth that a simulation hides; for the log only.

    By class name, over the images of `pseudo` whose truth is known.
    """
    given = {
        name: Prediction(
            label.boxes[~label.ignore],
            label.labels[~label.ignore],
            np.ones(label.n_objects, dtype=np.float32),
        )
        for name, label in pseudo.items()
    }
    rows = graded(given, annotations, class_names).tolist()
    return {name: Quality.of(row) for name, row in zip(class_names, rows, strict=True)}
