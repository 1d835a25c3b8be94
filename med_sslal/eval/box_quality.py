"""How well boxes fit the objects that they find, whatever is missed besides."""

import numpy as np

from med_sslal.eval.eval_utils import Columns, MetricResult, on_columns
from med_sslal.eval.hits import one_to_one, overlapping

_BEST_COUNT = 100


@on_columns
def box_quality(table: Columns, *, draws: int = 1000, seed: int = 0) -> MetricResult:
    """Mean IoU of the objects that are found (`mean_iou`), matched as COCO matches at IoU 0.5.

    Of a class in an image the 100 best detections count. From the best score down each takes the
    free object of its class that it overlaps most, by IoU 0.5 or more. What is missed and what is
    false counts neither way, so read it beside a sensitivity.

    The arguments are those of `metric.evaluate`; `draws` and `seed` are not read, as it has no
    interval.

    Returns:
        `mean_iou`, the mean over the classes, and with several classes `mean_iou/NAME`; None where
        no object is found, which is left out of the mean.
    """
    labels, overlaps = found_overlaps(table)
    per_class = {
        name: float(overlaps[labels == label].mean()) if (labels == label).any() else None
        for label, name in enumerate(table.class_names, start=1)
    }
    defined = [value for value in per_class.values() if value is not None]
    values = {"mean_iou": float(np.mean(defined)) if defined else None}
    if len(table.class_names) > 1:
        values |= {f"mean_iou/{name}": value for name, value in per_class.items()}
    return MetricResult(values)


def found_overlaps(table: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the objects that are found, int64 [F], and the IoU of each with its detection."""
    n_classes = len(table.class_names) + 1
    det_class = table.det_image * n_classes + table.det_labels
    best_first = np.lexsort((-table.det_scores, det_class))
    place = np.arange(len(best_first)) - np.searchsorted(
        det_class[best_first], det_class[best_first]
    )
    counted = best_first[place < _BEST_COUNT]
    rows: list[tuple[int, int, float]] = []
    for pairs in overlapping(table, counted, np.flatnonzero(~table.gt_ignore)):
        rows += zip(*(column.tolist() for column in pairs), strict=True)
    rows.sort(key=lambda row: (-table.det_scores[row[0]], row[0], -row[2]))
    taken = one_to_one(rows)
    overlaps = np.array([overlap for _, overlap in taken.values()])
    return table.gt_labels[np.array(list(taken), dtype=np.int64)], overlaps
