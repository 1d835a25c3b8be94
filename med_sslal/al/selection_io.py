"""selection.json: what a query took and why, with the value of every image it could have taken.

And, beside it: what the model saw on the images that a report shows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from med_sslal.al.record import PLAIN, PoolRecord, RecordHeader
from med_sslal.base.types import ImageInfo, Prediction, ScheduleEntry, Selected, Selection
from med_sslal.eval.coco_utils import to_coco_predictions
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import python_generator, read_versioned, write_json, write_versioned

FORMAT_VERSION = 1

# Detections worth showing: those from this score on, and the best few in any case.
SHOWN_SCORE, SHOWN_AT_LEAST = 0.3, 5
# Images that were not taken, drawn at random to be shown beside those that were.
N_CONTRAST = 8


def write_selection(path: Path, selection: Selection, cycle: int, header: RecordHeader) -> None:
    """Write what a query took atomically: the cycle's model scored the record of that header."""
    content = {
        "cycle": cycle,
        "seed": selection.seed,
        "criteria": list(selection.criteria),
        "box_count_bias": selection.box_count_bias,
        "schedule": None if selection.entry is None else asdict(selection.entry),
        "model_hash": header.model_hash,
        "config_hash": header.config_hash,
        "image_ids": list(selection.image_ids),
        "images": [asdict(item) for item in selection.items],
        "scores": {name: dict(values) for name, values in selection.scores.items()},
    }
    write_versioned(path, FORMAT_VERSION, content)


def read_selection(path: Path) -> Selection:
    """Read what `write_selection` wrote; DataError where it is missing, damaged or newer."""
    content = read_versioned(path, FORMAT_VERSION)
    try:
        # Files of runs before there were schedules have none.
        entry = content.get("schedule")
        return Selection(
            items=tuple(Selected(**item) for item in content["images"]),
            scores=content["scores"],
            criteria=tuple(content["criteria"]),
            seed=content["seed"],
            # Files of the first runs have none.
            box_count_bias=content.get("box_count_bias"),
            entry=None if entry is None else ScheduleEntry(**entry),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is no selection: {error}", path) from error


def write_detections(
    path: Path, selection: Selection, record: PoolRecord, infos: Mapping[str, ImageInfo], cycle: int
) -> None:
    """Write detections of a query: records are dropped, and a report needs a little of them.

    The file holds, in COCO's form (see `coco_utils.to_coco_predictions`), those worth showing on
    the images taken and on a few others, drawn by the run's seed.
    """
    taken = set(selection.image_ids)
    others = [name for name in record.image_ids.tolist() if name not in taken]
    contrast = python_generator(selection.seed, "contrast", cycle).sample(
        others, min(N_CONTRAST, len(others))
    )
    names = (*selection.image_ids, *contrast)
    shown = detections_of(record, names, SHOWN_SCORE, at_least=SHOWN_AT_LEAST)
    write_json(path, to_coco_predictions(shown, infos, record.header.class_names))


def detections_of(
    record: PoolRecord, image_ids: Iterable[str], score: float, *, at_least: int = 0
) -> dict[str, Prediction]:
    """What the model saw on images of a record, from a score on and the best few in any case."""
    section, shown = record.section(PLAIN), {}
    for name in image_ids:
        row = int(np.searchsorted(section.image_ids, name))
        first, last = int(section.offsets[row]), int(section.offsets[row + 1])
        # Detections lie best first.
        n = max(at_least, int((section.scores[first:last] >= score).sum()))
        rows = slice(first, min(first + n, last))
        found = (section.boxes, section.labels, section.scores)
        shown[name] = Prediction(*(np.array(column[rows]) for column in found))
    return shown
