"""What a reader did with the boxes that a query showed: the detector measured by its corrections.

A shown box is right where it was kept with its class. On a blind image nothing was shown, and a
query keeps no detection of it: there only boxes and seconds are counted, against shown images.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any, Literal, get_args

import numpy as np

from med_sslal.base.types import ImageInfo
from med_sslal.eval.eval_utils import Columns, columns
from med_sslal.eval.hits import MIN_OVERLAP, one_to_one, overlapping
from med_sslal.practice.answers import Answer, Query, QueryImage

BANDS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Edges of the bands of scores; a score on an edge lies in the band above it."""

SAME_CORNERS = 0.5
"""Pixels by which the corners of an untouched box differ at most: tools round coordinates."""

MAX_SECONDS = 600.0
"""Longer times are left out of medians: tools go on counting while nobody is there."""

Kind = Literal["untouched", "moved", "relabelled", "deleted", "added"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STATES = ("labelled", "confirmed_empty", "skipped", "in_progress", "pending")


@dataclass(frozen=True)
class Change:
    """What became of a box that was shown, or one that a reader added."""

    image_id: str
    kind: Kind
    # Box (xyxy, ORIGINAL pixels), label and score as shown; None of an added one.
    box: tuple[float, ...] | None = None
    label: int | None = None
    score: float | None = None
    # Box and label as answered; None of a deleted one.
    answered_box: tuple[float, ...] | None = None
    answered_label: int | None = None
    iou: float | None = None  # of both boxes; None where there is only one


@dataclass(frozen=True)
class Reading:
    """An image that a reader has labelled or confirmed to be empty."""

    image_id: str
    blind: bool
    n_boxes: int  # as answered
    reader: str
    seconds: float | None


@dataclass(frozen=True)
class Corrections:
    """All that readers did with a query."""

    query_id: str
    run: str
    cycle: int
    class_names: tuple[str, ...]
    images: Mapping[str, int]  # How many are in each of the STATES.
    changes: tuple[Change, ...]  # By the rank of the image; none of blind ones.
    readings: tuple[Reading, ...]

    def to_json(self) -> dict[str, Any]:
        """Its counts and, each beside the count that it is of, shares, means and medians.

        None stands for what is undefined.
        """
        bands = [
            {"from": low, "to": high, **_of_shown(own)}
            for (low, high), own in zip(pairwise(BANDS), _by_band(self.changes), strict=True)
        ]
        classes = {
            name: _sums(self.changes, label) for label, name in enumerate(self.class_names, start=1)
        }
        readers = {
            name: self._read_by([each for each in self.readings if each.reader == name])
            for name in sorted({each.reader for each in self.readings})
        }
        return {
            **{key: getattr(self, key) for key in ("query_id", "run", "cycle", "class_names")},
            "images": dict(self.images),
            **self._read_by(self.readings),
            "bands": bands,
            "classes": classes,
            "readers": readers,
            "changes": [asdict(change) for change in self.changes],
        }

    def _read_by(self, readings: Sequence[Reading]) -> dict[str, Any]:
        own = {reading.image_id for reading in readings}
        return {
            "boxes": _sums([change for change in self.changes if change.image_id in own]),
            "shown": _pace([reading for reading in readings if not reading.blind]),
            "blind": _pace([reading for reading in readings if reading.blind]),
        }


def corrections(query: Query, answers: Mapping[str, Answer]) -> Corrections:
    """Compare what a query showed with its answers, by image id.

    Boxes of an image are matched one to one: first those of one class whose corners are the same
    but for rounding, then those of one class by IoU (`MIN_OVERLAP` or more, best first), then those
    of two classes likewise; of equal IoU the higher score comes first.

    Raises:
        DataError: A shown box is none.
    """
    states = Counter(_state(answers.get(image.image_id)) for image in query.images)
    given = [
        (image, answers[image.image_id])
        for image in query.images
        if _state(answers.get(image.image_id)) in ("labelled", "confirmed_empty")
    ]
    readings = [
        Reading(image.image_id, image.blind, len(answer.labels), answer.reader, answer.seconds)
        for image, answer in given
    ]
    compared = [(image, answer) for image, answer in given if not image.blind]
    return Corrections(
        query_id=query.query_id,
        run=query.run,
        cycle=query.cycle,
        class_names=query.class_names,
        images={state: states[state] for state in STATES},
        changes=tuple(_changes(compared, query.class_names)) if compared else (),
        readings=tuple(readings),
    )


def left_as_shown(image: QueryImage, answer: Answer) -> np.ndarray:
    """The boxes of an answer that a shown one of the class is, but for rounding: bool [N]."""
    shown = image.shown
    near = _near(answer.boxes[:, None], shown.boxes[None])
    left: np.ndarray = (near & (answer.labels[:, None] == shown.labels[None])).any(1)
    return left


def _state(answer: Answer | None) -> str:
    return "pending" if answer is None or answer.state == "withdrawn" else answer.state


def _changes(
    compared: Sequence[tuple[QueryImage, Answer]], class_names: Sequence[str]
) -> Iterator[Change]:
    """The changes of all images, by their rank; those of an image as shown, added ones last."""
    shown = {image.image_id: image.shown for image, _ in compared}
    labels = {image.image_id: answer.annotation for image, answer in compared}
    infos = {
        image.image_id: ImageInfo(
            image.image_id, image.image_id, image.source, (image.height, image.width)
        )
        for image, _ in compared
    }
    table = columns(shown, labels, infos, class_names)
    met = one_to_one(_candidates(table))
    partner = {det: (gt, overlap) for gt, (det, overlap) in met.items()}
    position = {image_id: number for number, image_id in enumerate(table.image_ids)}
    for image, _ in compared:
        for det in np.flatnonzero(table.det_image == position[image.image_id]).tolist():
            gt, overlap = partner.get(det, (None, None))
            yield Change(
                image_id=image.image_id,
                kind="deleted" if gt is None else _kind(table, det, gt),
                box=tuple(table.det_boxes[det].tolist()),
                label=int(table.det_labels[det]),
                score=float(table.det_scores[det]),
                answered_box=None if gt is None else tuple(table.gt_boxes[gt].tolist()),
                answered_label=None if gt is None else int(table.gt_labels[gt]),
                iou=overlap,
            )
        for gt in np.flatnonzero(table.gt_image == position[image.image_id]).tolist():
            if gt not in met:
                box, label = tuple(table.gt_boxes[gt].tolist()), int(table.gt_labels[gt])
                yield Change(image.image_id, "added", answered_box=box, answered_label=label)


def _candidates(table: Columns) -> list[tuple[int, int, float]]:
    """Pairs of a shown and an answered box, and their IoU, in the order in which they match."""
    rows: list[tuple[int, float, float, int, int]] = []
    every = np.arange(len(table.det_labels)), np.arange(len(table.gt_labels))
    for det, gt, overlap in overlapping(table, *every, least=0.0, any_class=True):
        same = table.det_labels[det] == table.gt_labels[gt]
        # Of a very small box the IoU may be low even so.
        untouched = same & _near(table.det_boxes[det], table.gt_boxes[gt])
        turn = np.where(untouched, 0, np.where(same, 1, 2))
        fits = untouched | (overlap >= MIN_OVERLAP)
        keys = (turn, -overlap, -table.det_scores[det], det, gt)
        rows += zip(*(key[fits].tolist() for key in keys), strict=True)
    return [(det, gt, -overlap) for _, overlap, _, det, gt in sorted(rows)]


def _near(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    near: np.ndarray = (np.abs(first - second) <= SAME_CORNERS).all(-1)
    return near


def _kind(table: Columns, det: int, gt: int) -> Kind:
    if table.det_labels[det] != table.gt_labels[gt]:
        return "relabelled"
    return "untouched" if _near(table.det_boxes[det], table.gt_boxes[gt]) else "moved"


def _by_band(changes: Iterable[Change]) -> list[list[Change]]:
    """The boxes that were shown, by the bands of their scores."""
    bands: list[list[Change]] = [[] for _ in BANDS[1:]]
    for change in changes:
        if change.score is not None:
            # Scores are float32, in which 0.7 is a little less than it is in float64.
            edges = np.array(BANDS[1:-1], np.float32)
            bands[np.searchsorted(edges, np.float32(change.score), "right")].append(change)
    return bands


def _sums(changes: Sequence[Change], label: int | None = None) -> dict[str, Any]:
    """Counts, precision, recall and mean IoU of all boxes, or of those of a class.

    A relabelled box is a wrong one of the class that was shown, and a missed one of the other.
    """
    shown = [c for c in changes if c.label is not None and label in (None, c.label)]
    answered = [
        each
        for each in changes
        if each.answered_label is not None and label in (None, each.answered_label)
    ]
    result = _of_shown(shown)
    return result | {
        "added": sum(change.kind == "added" for change in answered),
        "answered": len(answered),
        "recall": result["kept"] / len(answered) if answered else None,
    }


def _of_shown(shown: Sequence[Change]) -> dict[str, Any]:
    counts = Counter(change.kind for change in shown)
    moved = [c.iou for c in shown if c.kind == "moved" and c.iou is not None]
    kept = counts["untouched"] + counts["moved"]
    return {
        "shown": len(shown),
        "kept": kept,
        **{kind: counts[kind] for kind in KINDS if kind != "added"},
        "precision": kept / len(shown) if shown else None,
        "mean_iou_moved": fmean(moved) if moved else None,
    }


def _pace(readings: Sequence[Reading]) -> dict[str, Any]:
    """How many boxes readers have drawn, and how long that took."""
    n_boxes = sum(reading.n_boxes for reading in readings)
    timed = [
        (reading.seconds, reading.n_boxes)
        for reading in readings
        if reading.seconds is not None and reading.seconds <= MAX_SECONDS
    ]
    per_box = [seconds / n for seconds, n in timed if n]
    return {
        "images": len(readings),
        "boxes": n_boxes,
        "boxes_per_image": n_boxes / len(readings) if readings else None,
        "timed_images": len(timed),
        "seconds_per_image": median(seconds for seconds, _ in timed) if timed else None,
        "timed_images_with_box": len(per_box),
        "seconds_per_box": median(per_box) if per_box else None,
    }
