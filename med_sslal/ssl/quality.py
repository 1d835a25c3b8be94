"""How detections or pseudo-labels compare with labels, class by class."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.base.types import Annotation, ImageInfo, Prediction
from med_sslal.eval.eval_utils import columns
from med_sslal.eval.hits import match


class Quality(NamedTuple):
    """Precision and recall of pseudo-labels; None where nothing could be counted."""

    precision: float | None
    recall: float | None


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
    complete = {name: predictions.get(name, Prediction.empty()) for name in annotations}
    # Matching never looks at patients or sizes.
    infos = {name: ImageInfo(name, name, "", (0, 0)) for name in annotations}
    table = columns(complete, annotations, infos, class_names)
    matches = match(table)
    result = {}
    for number, name in enumerate(class_names, start=1):
        found = matches.found_score[(table.gt_labels == number) & ~table.gt_ignore]
        false = table.det_scores[(table.det_labels == number) & matches.false_positive]
        result[name] = round_scores(found), round_scores(false)
    return result


def hidden_truth_quality(
    pseudo: Mapping[str, Annotation],
    annotations: Mapping[str, Annotation],
    class_names: Sequence[str],
) -> dict[str, Quality]:
    """Grade `PseudoLabels.labels` by the truth that a simulation hides; for the log only.

    By class name, over the images of `pseudo`: precision is objects met over objects met plus boxes
    that meet none; recall is objects met over all objects.
    """
    predictions = {
        name: Prediction(
            label.boxes[~label.ignore],
            label.labels[~label.ignore],
            np.ones(label.n_objects, dtype=np.float32),
        )
        for name, label in pseudo.items()
    }
    truth = {name: annotations[name] for name in pseudo}
    result = {}
    for name, (found, false) in found_and_false(predictions, truth, class_names).items():
        met = int((found > 0).sum())
        result[name] = Quality(
            met / (met + len(false)) if met + len(false) else None,
            met / len(found) if len(found) else None,
        )
    return result
