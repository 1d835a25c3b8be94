"""The detections of a pool record as pseudo-labels see them, a block of images at a time.

Shape shorthand as in `med_sslal.al.record`: N images of a block, M detections of all of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from med_sslal.al.arrays import round_scores
from med_sslal.al.criteria.base import BLOCK_IMAGES
from med_sslal.al.record import RecordSection
from med_sslal.base.types import Annotation

# Coordinates are rounded to a hundredth of a pixel, far below what a label means.
BOX_DECIMALS = 2


@dataclass(frozen=True)
class Block:
    """Some images of a record with their detections, of which no more is in memory.

    Attributes:
        usable: bool [N], which of the images are unlabelled.
        boxes: float32 [M, 4], rounded.
        scores: float64 [M], rounded.
        valid: bool [M], boxes of usable images that still have an area.
    """

    section: RecordSection
    usable: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    valid: np.ndarray


def blocks_of(section: RecordSection, usable: np.ndarray) -> Iterator[Block]:
    """The detections of a record, of BLOCK_IMAGES images at a time."""
    for number, block in enumerate(section.blocks(BLOCK_IMAGES)):
        own = usable[number * BLOCK_IMAGES :][: len(block)]
        boxes = np.round(np.asarray(block.boxes), BOX_DECIMALS)
        valid = own[block.owners] & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        labels, scores = np.asarray(block.labels), round_scores(block.scores)
        yield Block(block, own, boxes, labels, scores, valid)


def by_class(chosen: Sequence[tuple[np.ndarray, np.ndarray]], n_classes: int) -> list[np.ndarray]:
    """The scores of chosen detections, class by class, from (labels, scores) of each block."""
    none = (np.zeros(0, dtype=np.int64), np.zeros(0))
    labels, scores = (np.concatenate(column) for column in zip(none, *chosen, strict=True))
    return [scores[labels == number + 1] for number in range(n_classes)]


def annotations(block: Block, kept: np.ndarray, ignored: np.ndarray) -> dict[str, Annotation]:
    """Labels of the images with a kept box: kept boxes (bool [M]), then the ignore regions."""
    labels, section = {}, block.section
    for row in np.unique(section.owners[kept]).tolist():
        first, last = section.offsets[row], section.offsets[row + 1]
        rows = np.concatenate(
            [first + np.flatnonzero(mask[first:last]) for mask in (kept, ignored)]
        )
        labels[str(section.image_ids[row])] = Annotation(
            boxes=block.boxes[rows],
            labels=block.labels[rows],
            ignore=ignored[rows],
            # Nobody checked that these boxes fit tightly.
            regress=np.zeros(len(rows), dtype=bool),
        )
    return labels
