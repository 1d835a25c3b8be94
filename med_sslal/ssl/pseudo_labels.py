"""Offline pseudo-labels: confident detections on unlabelled images, taken as labels.

They come from the pool record of the cycle's own scoring pass, so they cost no inference.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from annotated_types import Ge, Gt, Interval

from med_sslal.al.arrays import SCORE_DECIMALS, round_scores
from med_sslal.al.criteria.base import BLOCK_IMAGES
from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, RECORD_FLOOR, PoolRecord, RecordSection
from med_sslal.base.types import Annotation, Prediction
from med_sslal.config.schema import Share
from med_sslal.config.signature import wrong_arguments
from med_sslal.ssl.quality import found_and_false
from med_sslal.utils.boxes import paired_iou
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import atomic_write, read_versioned, stable_hash

FORMAT_VERSION = 2
# Coordinates are rounded to a hundredth of a pixel, far below what a label means.
BOX_DECIMALS = 2
# Images with the surest, and as many with the least sure, pseudo-labels that are told apart.
N_EXAMPLES = 5
# A record holds no score below it.
Recorded = Annotated[float, Interval(ge=RECORD_FLOOR, le=1)]


@dataclass(frozen=True)
class ClassStats:
    """A class's pseudo-labels of a cycle."""

    count: int  # Of boxes.
    mean_score: float | None  # None where there are no boxes.
    threshold: float  # After the density cap.


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo-labels of one cycle."""

    # Image id to label in ORIGINAL pixels, sorted by id. An image without a box is a negative;
    # images left out are not trained on.
    labels: Mapping[str, Annotation]
    stats: Mapping[str, ClassStats]  # By class name.
    # Labelled image id to the ignore regions that its label gets besides (`ignore_unmatched`).
    regions: Mapping[str, Annotation] = field(default_factory=dict)
    # Image id to the scores of its pseudo-labels, of the images whose least sure box is the surest
    # and then of those where it is the least sure.
    examples: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def beside(self, labels: Mapping[str, Annotation]) -> dict[str, Annotation]:
        """The labels of the labelled images, with the `regions` in them."""
        return {name: _joined(own, self.regions.get(name)) for name, own in labels.items()}

    def replaced(self, truth: Mapping[str, Annotation]) -> "PseudoLabels":
        """The same images with the truth as their labels, which has no scores."""
        stats = {}
        for number, (name, own) in enumerate(self.stats.items(), start=1):
            count = sum(
                int(((label.labels == number) & ~label.ignore).sum()) for label in truth.values()
            )
            stats[name] = replace(own, count=count, mean_score=None)
        return replace(self, labels=truth, stats=stats, examples={})

    def write(self, path: Path) -> None:
        """Write them as JSON, one line per image, as `atomic_write` does."""
        atomic_write(path, lambda stream: stream.writelines(line.encode() for line in self._json()))

    def _json(self) -> Iterator[str]:
        """The file in pieces: a large pool's as one text, or as plain lists, would fill memory."""
        dumps = json.JSONEncoder(allow_nan=False).encode
        stats = {name: asdict(stats) for name, stats in self.stats.items()}
        yield f'{{"format_version": {FORMAT_VERSION},\n"stats": {dumps(stats)}'
        for part, labels in (("labels", self.labels), ("regions", self.regions)):
            yield f',\n"{part}": {{'
            for place, (name, label) in enumerate(labels.items()):
                image = {
                    # The decimals that coordinates were rounded to.
                    "boxes": np.round(label.boxes.astype(np.float64), BOX_DECIMALS).tolist(),
                    "labels": label.labels.tolist(),
                    "ignore": label.ignore.tolist(),
                    "regress": label.regress.tolist(),
                }
                yield f"{',' if place else ''}\n{dumps(name)}: {dumps(image)}"
            yield "\n}"
        yield f',\n"examples": {dumps(dict(self.examples))}}}\n'

    @classmethod
    def read(cls, path: Path) -> "PseudoLabels":
        """Read what `write` wrote, bit for bit; DataError where it is missing, damaged or newer."""
        try:
            content = read_versioned(path, FORMAT_VERSION, _label_or_same)
            labels, regions = content["labels"], content.get("regions", {})
            entries = (*labels.items(), *regions.items())
            strangers = [n for n, v in entries if not isinstance(v, Annotation)]
            if strangers:
                raise TypeError(f"the entry of {strangers[0]} is no label")
            stats = {name: ClassStats(**stats) for name, stats in content["stats"].items()}
            return cls(labels, stats, regions, content.get("examples", {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} holds no pseudo-labels: {error}") from error


NO_LABELS: Final = PseudoLabels({}, {})


@dataclass(frozen=True, kw_only=True)
class PseudoLabeller:
    """Decides which detections are labels, which are ignore regions and which are neither.

    A class's threshold comes from validation, or is fixed. Boxes from the threshold on are
    pseudo-labels; those between `ignore_floor` and the threshold are ignore regions; the rest is
    background. Each pseudo-label teaches what is there; how it is bounded it teaches only where
    the box head, given the box in place of a proposal, makes nearly the same box of it again.

    Args:
        threshold: Fixed threshold for every class; null = found on validation.
        target_precision: Precision on validation that a class's threshold must reach; of those
            that do, the one with the best F1 is taken.
        min_threshold: Lowest threshold that validation may give.
        max_threshold: Highest one, also taken where no threshold reaches the precision.
        fallback_threshold: Threshold of a class with too few true positives on validation.
        min_true_positives: How many true positives of a class validation needs at least.
        density_cap: Pseudo-labels per unlabelled image are at most this often the boxes per
            labelled image, class by class; the class's threshold is raised until it holds; null =
            no cap.
        ignore_floor: Boxes from here to the threshold are ignore regions; null = none are.
        negative_floor: An image is used as a negative only if its best score is below this; null =
            none is.
        regress_iou: IoU of a box with what the box head makes of it, from which on the box teaches
            regression; null = none does. Where the detector has no box head, none does.
        ignore_unmatched: Where labelled images may lack boxes: confident detections on them that
            meet no label are ignore regions.

    Raises:
        ConfigError: An argument is wrong.
    """

    threshold: Recorded | None = None
    target_precision: Share = 0.8
    min_threshold: Recorded = 0.5
    max_threshold: Recorded = 0.95
    fallback_threshold: Recorded = 0.7
    min_true_positives: Annotated[int, Ge(1)] = 20
    density_cap: Annotated[float, Gt(0)] | None = 1.2
    ignore_floor: Recorded | None = 0.2
    negative_floor: Recorded | None = RECORD_FLOOR
    regress_iou: Share | None = 0.85
    ignore_unmatched: bool = False

    def __post_init__(self) -> None:
        wrong = wrong_arguments(type(self), asdict(self))
        problems = [(name, text) for name, text, _ in wrong] or self.check_args(asdict(self))
        if problems:
            raise ConfigError("; ".join(f"{name}: {sentence}" for name, sentence in problems))

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Find what is wrong between arguments of the right types: (argument, sentence) each."""
        low, floor = args["min_threshold"], args["ignore_floor"] or 0.0
        problems = [
            (name, f"found {args[name]}; allowed: ignore_floor {floor} or more")
            for name in ("threshold", "min_threshold", "max_threshold", "fallback_threshold")
            if args[name] is not None and args[name] < floor
        ]
        given = args["threshold"]
        lowest = min(low, args["fallback_threshold"]) if given is None else given
        most = lowest if args["ignore_floor"] is None else floor
        if (args["negative_floor"] or 0.0) > most:
            what = f"found {args['negative_floor']}; allowed: up to {most}, from where on a box is "
            what += "a pseudo-label or an ignore region"
            problems.append(("negative_floor", what))
        if low > args["max_threshold"]:
            problems.append(
                ("min_threshold", f"found {low}, above max_threshold {args['max_threshold']}")
            )
        return problems

    def thresholds(
        self,
        predictions: Mapping[str, Prediction],
        annotations: Mapping[str, Annotation],
        class_names: Sequence[str],
    ) -> dict[str, float]:
        """The threshold of each class.

        Of `min_threshold` and the scores above it at which the precision on validation reaches the
        target, the one with the best F1, the lowest of equals. Precision counts objects found
        against detections that meet no object (IoU 0.5); what lies in ignore regions, and repeats
        on an object, count as neither.
        """
        if self.threshold is not None:
            return dict.fromkeys(class_names, self.threshold)
        outcome = found_and_false(predictions, annotations, class_names)
        return {name: self._threshold(*outcome[name]) for name in class_names}

    def _threshold(self, found: np.ndarray, false: np.ndarray) -> float:
        """The threshold of one class, from what `found_and_false` says of it."""
        found, false = np.sort(found), np.sort(false)
        if (found >= self.min_threshold).sum() < self.min_true_positives:
            return self.fallback_threshold
        scores = np.concatenate([[self.min_threshold], found, false])
        tried = np.unique(scores[(scores >= self.min_threshold) & (scores <= self.max_threshold)])
        n_found = len(found) - np.searchsorted(found, tried)
        n_false = len(false) - np.searchsorted(false, tried)
        # The slack keeps 9 of 10 at 0.9 whatever the last bit of the product says.
        enough = n_found >= self.target_precision * (n_found + n_false) - 1e-9
        f1 = 2 * n_found / (n_found + n_false + len(found))
        f1[~enough | (n_found == 0)] = -1.0
        best = int(f1.argmax())
        return float(tried[best]) if f1[best] >= 0 else self.max_threshold

    def make(
        self,
        record: PoolRecord,
        pool: Pool,
        thresholds: Mapping[str, float],
        labelled_annotations: Mapping[str, Annotation],
        *,
        seed: int = 0,
    ) -> PseudoLabels:
        """Make pseudo-labels afresh for the images that are unlabelled now.

        Args:
            record: What the model saw on the pool; images labelled since are left out.
            pool: The pool as the next training sees it.
            thresholds: Class name to threshold.
            labelled_annotations: Labels that set the density cap and the share of negatives.
            seed: Which images become negatives, where there are more than the share allows.

        Raises:
            DataError: The record lacks an unlabelled image, or low scores that the rules need.
        """
        usable = self._usable(record, pool)
        if not labelled_annotations:
            raise ValueError("pseudo-labels need labelled images to be measured against")
        section, names = record.section(PLAIN), record.header.class_names
        lowest = np.array([thresholds[name] for name in names])
        chosen = [(np.zeros(0, dtype=np.int64), np.zeros(0))]
        for block, _, valid in _blocks(section, usable):
            sure = valid & (block.scores >= lowest[block.labels - 1])
            chosen.append((block.labels[sure], block.scores[sure]))
        numbers, scores = (np.concatenate(column) for column in zip(*chosen, strict=True))
        by_class = [scores[numbers == number] for number in range(1, len(names) + 1)]
        limits = self._limits(by_class, lowest, labelled_annotations, usable.sum())
        labels: dict[str, Annotation] = {}
        negatives: list[str] = []
        scored: dict[str, list[float]] = {}
        for block, own, valid in _blocks(section, usable):
            kept = valid & (block.scores >= limits[block.labels - 1])
            ignored = valid & ~kept & (block.scores >= (self.ignore_floor or math.inf))
            for name, label, sure in _annotations(block, kept, ignored, self._settled(block)):
                labels[name], scored[name] = label, sure
            best = np.zeros(len(block))
            np.maximum.at(best, block.owners, block.scores)
            negatives += block.image_ids[own & (best < (self.negative_floor or 0.0))].tolist()
        n_empty = sum(label.n_objects == 0 for label in labelled_annotations.values())
        n_filled = len(labelled_annotations) - n_empty
        n_negatives = n_empty * len(labels) // n_filled if n_filled else 0
        negatives.sort(key=lambda image_id: stable_hash("negative", seed, image_id))
        for image_id in negatives[:n_negatives]:
            labels[image_id] = Annotation.empty()
        assert not labels.keys() & set(pool.labelled), "pseudo-labels on labelled images"
        stats = map(_stats, by_class, limits.tolist())
        return PseudoLabels(
            dict(sorted(labels.items())),
            dict(zip(names, stats, strict=True)),
            examples=_ends(scored),
        )

    def _settled(self, block: RecordSection) -> np.ndarray:
        """The boxes that reproduce themselves, and may teach regression: bool [M]."""
        if self.regress_iou is None or block.refined_boxes is None:
            return np.zeros(len(block.boxes), dtype=bool)
        return paired_iou(block.boxes, block.refined_boxes) >= self.regress_iou

    def _usable(self, record: PoolRecord, pool: Pool) -> np.ndarray:
        """Which images of the record are unlabelled: bool [N]."""
        unlabelled, ids = set(pool.unlabelled), record.image_ids.tolist()
        missing = unlabelled.difference(ids)
        if missing:
            raise DataError(
                f"record {record.path} lacks {len(missing)} unlabelled image(s), the first is "
                f"{min(missing)}: score the pool again"
            )
        floor = min(self.ignore_floor or 1.0, self.negative_floor or 1.0)
        if record.header.record_floor > floor:
            raise DataError(
                f"record {record.path} keeps scores from {record.header.record_floor} on, "
                f"pseudo-labels need them from {floor} on: score the pool again"
            )
        return np.array([image_id in unlabelled for image_id in ids], dtype=bool)

    def _limits(
        self,
        scores_by_class: Sequence[np.ndarray],
        thresholds: np.ndarray,
        labelled: Mapping[str, Annotation],
        n_images: int,
    ) -> np.ndarray:
        """Thresholds of the classes, raised where a class would exceed the density cap."""
        limits = thresholds.copy()
        if self.density_cap is None:
            return limits
        for number, scores in enumerate(scores_by_class, start=1):
            n_boxes = sum(
                int(((label.labels == number) & ~label.ignore).sum()) for label in labelled.values()
            )
            # The slack keeps a product such as 1.2 * 5 at 6 whatever its last bit says.
            allowed = math.floor(self.density_cap * n_boxes * n_images / len(labelled) + 1e-9)
            if len(scores) > allowed:
                highest = np.sort(scores)[::-1]
                limits[number - 1] = round(highest[allowed] + 10.0**-SCORE_DECIMALS, SCORE_DECIMALS)
        return limits


def _joined(label: Annotation, more: Annotation | None) -> Annotation:
    """One label with the boxes of another behind its own."""
    if more is None:
        return label
    return Annotation(
        np.concatenate([label.boxes, more.boxes]),
        np.concatenate([label.labels, more.labels]),
        np.concatenate([label.ignore, more.ignore]),
        np.concatenate([label.regress, more.regress]),
    )


def _stats(scores: np.ndarray, threshold: float) -> ClassStats:
    """The numbers of one class, of whose scores those from the threshold on are pseudo-labels."""
    scores = scores[scores >= threshold]
    mean = round(float(scores.mean()), SCORE_DECIMALS) if len(scores) else None
    return ClassStats(len(scores), mean, threshold)


def _blocks(
    section: RecordSection, usable: np.ndarray
) -> Iterator[tuple[RecordSection, np.ndarray, np.ndarray]]:
    """Blocks of a section, rounded, with their usable images and the boxes of an area on these."""
    for number, block in enumerate(section.blocks(BLOCK_IMAGES)):
        own = usable[number * BLOCK_IMAGES :][: len(block)]
        boxes = np.round(np.asarray(block.boxes), BOX_DECIMALS)
        valid = own[block.owners] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        labels, scores = np.asarray(block.labels), round_scores(block.scores)
        yield replace(block, boxes=boxes, labels=labels, scores=scores), own, valid


def _annotations(
    block: RecordSection, kept: np.ndarray, ignored: np.ndarray, settled: np.ndarray
) -> Iterator[tuple[str, Annotation, list[float]]]:
    """Images with a kept box: the label, kept boxes (bool [M]) first, and the scores of these."""
    for row in np.unique(block.owners[kept]).tolist():
        first, last = block.offsets[row], block.offsets[row + 1]
        rows = np.concatenate(
            [first + np.flatnonzero(mask[first:last]) for mask in (kept, ignored)]
        )
        label = Annotation(
            block.boxes[rows], block.labels[rows], ignored[rows], (settled & kept)[rows]
        )
        scores = block.scores[first:last][kept[first:last]].tolist()
        yield str(block.image_ids[row]), label, scores


def _ends(scores: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The few images whose lowest score is the highest, and those where it is the lowest."""
    ranked = sorted(scores.items(), key=lambda entry: (-min(entry[1]), entry[0]))
    return dict(ranked[:N_EXAMPLES] + ranked[N_EXAMPLES:][-N_EXAMPLES:])


def _label_or_same(content: dict[str, Any]) -> Any:
    """The label that an object describes; another object stays."""
    # Files of version 1 say nothing of regression, because no box taught it.
    known = content.keys() - {"regress"} == {"boxes", "labels", "ignore"}
    if not known or not isinstance(content["boxes"], list):
        return content
    n = len(content["labels"])
    try:
        return Annotation(
            boxes=np.array(content["boxes"], dtype=np.float32).reshape(n, 4),
            labels=np.array(content["labels"], dtype=np.int64),
            ignore=np.array(content["ignore"], dtype=bool),
            regress=np.array(content.get("regress", [False] * n), dtype=bool),
        )
    except (ValueError, OverflowError) as error:
        # To the reader of JSON a ValueError means that it is none.
        raise TypeError(str(error)) from error
