"""What a run's report shows of its choices: queried images, what was bought, pseudo-labels.

Labels of the pool that the run has not bought are hidden from the report too.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from med_sslal.al.finds import MISTAKES
from med_sslal.base.types import Annotation
from med_sslal.eval.drawing import marks_of
from med_sslal.report.gallery import MAX_PICTURES, Picture, jpeg
from med_sslal.report.run_data import CycleData, RunData
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import python_generator

Content = Mapping[str, Any]

# Pictures of each query: by rank, and left ones.
N_QUERIED, N_CONTRAST = 30, 5

# Of a picture: the detections with their score (more would hide each other), and the height of
# these, of the longer side.
_N_TEXTS, _LETTER = 4, 0.062

# Sizes of the box-count bias from which a criterion leans on the number of boxes, or counts them.
_LEANS, _COUNTS = 0.3, 0.8


def queries(run: RunData) -> Content:
    """The images of each query by rank, and some that were left."""
    queried = [cycle for cycle in run.cycles if cycle.selection is not None]
    # Beyond that many queries the newest are worth the room.
    drawn = queried[-MAX_PICTURES:]
    room = min(1.0, MAX_PICTURES / max(1, len(drawn)) / (N_QUERIED + N_CONTRAST))
    counts = max(1, int(N_QUERIED * room)), int(N_CONTRAST * room)
    return {
        "planned": run.n_cycles > 0,
        "n_listed": N_QUERIED,
        "any_found": any(cycle.detections for cycle in drawn),
        "all_found": all(cycle.detections for cycle in drawn),
        "queries": [_query(run, cycle, *counts) for cycle in drawn],
    }


def _query(run: RunData, cycle: CycleData, n_queried: int, n_contrast: int) -> Content:
    """One query, with its pictures where the data is there."""
    selection = cycle.selection
    assert selection is not None
    bias = selection.box_count_bias
    content = {
        "cycle": cycle.number,
        "selection": selection,
        "bias": None if bias is None else _bias_in_words(bias),
    }
    if run.dataset is None:
        return content
    others = []
    for name in _contrast(cycle)[:n_contrast]:
        scores = selection.scores
        values = {key: each[name] for key, each in scores.items() if name in each}
        others.append(_picture(run, cycle, name, None, values, "not taken"))
    taken = [
        _picture(run, cycle, item.image_id, item.rank, item.values, item.reason)
        for item in selection.items[:n_queried]
    ]
    return {**content, "taken": taken, "others": others}


def _bias_in_words(bias: float) -> str:
    """What a rank correlation of a criterion's value and the number of detections means."""
    kind = "many" if bias > 0 else "few"
    if abs(bias) >= _COUNTS:
        return f"the criterion hardly does more than count boxes, and prefers images with {kind}"
    if abs(bias) >= _LEANS:
        return f"images with {kind} detections tend to score higher"
    return "the score depends little on how many boxes were found"


def _contrast(cycle: CycleData) -> list[str]:
    """Images that were not taken: those with detections kept, or as many drawn by the seed."""
    assert cycle.selection is not None
    taken = set(cycle.selection.image_ids)
    if cycle.detections:
        return [name for name in cycle.detections if name not in taken]
    rest = [name for name in cycle.pool.unlabelled if name not in taken]
    generator = python_generator(cycle.selection.seed, "contrast", cycle.number)
    return generator.sample(rest, min(N_CONTRAST, len(rest)))


def _picture(
    run: RunData,
    cycle: CycleData,
    image_id: str,
    rank: int | None,
    values: Mapping[str, float],
    reason: str,
) -> Picture:
    """One picture, its truth shown where that was bought.

    Raises:
        DataError: The data set has no such image, or its file is missing or damaged.
    """
    dataset = run.dataset
    assert dataset is not None
    if image_id not in dataset.images.infos:
        raise DataError(
            f"image '{image_id}' of cycle {cycle.number} is not in the data set: give the run the "
            "data it was made on"
        )
    labels, pixels = dataset.labels, dataset.images.picture(image_id)
    height, width = pixels.shape[:2]
    letter = _LETTER * max(height, width)
    truth, found = labels.annotations.get(image_id), cycle.detections.get(image_id)
    marks = marks_of(
        truth, found, labels.class_names, (height, width), letter=letter, n_texts=_N_TEXTS
    )
    # A reason names the criterion that decided; the others' values stand before it.
    others = {name: value for name, value in values.items() if name not in reason}
    content = base64.b64encode(jpeg(pixels)).decode()
    return Picture(image_id, rank, others, reason, content, (width, height), letter, marks)


def finds(run: RunData) -> Content | None:
    """What the criterion finds on the validation images; None where it was not looked at."""
    told = [(cycle.number, cycle.finds) for cycle in run.cycles if cycle.finds is not None]
    undefined = {
        finding.undefined
        for _, found in told
        for finding in found.findings.values()
        if finding.undefined is not None
    }
    return {"told": told, "mistakes": MISTAKES, "undefined": sorted(undefined)} if told else None


def bought(run: RunData) -> Content | None:
    """What the labels were spent on, against images that nobody chose; None without data."""
    dataset = run.dataset
    if dataset is None or not run.cycles:
        return None
    infos, splits, names = dataset.images.infos, dataset.images.splits, dataset.labels.class_names
    held_out = (*splits["val"], *splits["test"])
    sizes = _sizes(dataset.labels.of(held_out).values())
    limits = np.quantile(sizes, [1 / 3, 2 / 3]) if len(sizes) else np.zeros(2)
    groups: dict[str, Sequence[str]] = {"initial set": run.cycles[0].pool.labelled}
    for cycle in run.cycles:
        if cycle.selection is not None:
            groups[f"query after cycle {cycle.number}"] = cycle.selection.image_ids
    groups["validation and test"] = held_out
    rows = []
    for group, ids in groups.items():
        labels = dataset.labels.of(ids).values()
        third = np.searchsorted(limits, _sizes(labels), "right")
        found = [each.labels[~each.ignore] for each in labels]
        classes = np.concatenate([np.zeros(0, int), *found])
        row = {
            "name": group,
            "images": len(ids),
            "patients": len({infos[image_id].group_id for image_id in ids}),
            "boxes": len(classes),
            "empty": sum(each.n_objects == 0 for each in labels),
            "classes": np.bincount(classes, minlength=len(names) + 1)[1:].tolist(),
            "thirds": np.bincount(third, minlength=3).tolist(),
        }
        rows.append(row)
    return {
        "rows": rows,
        "limits": limits.tolist(),
        "has_patients": any(info.group_id != name for name, info in infos.items()),
        "classes": names if len(names) > 1 else (),
    }


def _sizes(labels: Iterable[Annotation]) -> np.ndarray:
    """Square root of the area of every object, in ORIGINAL pixels."""
    boxes = [label.boxes[~label.ignore] for label in labels]
    sides = np.concatenate([np.zeros((0, 4), np.float32), *boxes])
    return np.sqrt((sides[:, 2] - sides[:, 0]) * (sides[:, 3] - sides[:, 1]))


def pseudo_labels(run: RunData) -> Content:
    """Pseudo-labels per cycle and class, and what their evaluation came to."""
    made = {cycle.number + 1: cycle.pseudo for cycle in run.cycles if cycle.pseudo is not None}
    return {
        "asked": run.config.get("ssl_settings", {}).get("include_pseudolabels"),
        "made": made,
        "quality": {cycle.number: cycle.pseudo_quality for cycle in run.cycles},
        "none_passes": any(
            stats.threshold > 1 for pseudo in made.values() for stats in pseudo.stats.values()
        ),
    }
