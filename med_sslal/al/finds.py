"""What a criterion finds: its values on images whose truth is known, held against the mistakes.

It is written down to be looked at; no query reads it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from med_sslal.al.arrays import rank_correlation
from med_sslal.al.record import PLAIN, PoolRecord, RecordHeader
from med_sslal.al.selection_io import detections_of
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.eval.eval_utils import columns
from med_sslal.eval.mistakes import FOUND_IOU, MIN_SCORE, TIGHT_IOU, Mistakes, mistakes
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_versioned, write_versioned

FORMAT_VERSION = 1

TOP_SHARE = 0.25
"""Share of the images, best by the criterion, that is held against all of them."""

MISTAKES = {
    "missed": "missed objects",
    "false_positives": "false positives",
    "loose_boxes": "loose boxes",
    "box_loss": "box loss",
}
"""The fields of Mistakes in words."""


@dataclass(frozen=True)
class Rating:
    """What a criterion says of the images of a record."""

    criterion: str  # Its name.
    values: np.ndarray  # float64 [N], higher = more informative.
    ranking: np.ndarray  # int64 [N], rows from best to worst.


@dataclass(frozen=True)
class Finding:
    """A criterion and one kind of mistake."""

    # Spearman's rank correlation of value and mistakes over the images; None where undefined.
    correlation: float | None
    undefined: str | None  # Why it is, in words; None where it is not.
    top: float  # Mean of the mistakes an image over the top quarter by the criterion.
    all: float  # The same over all images.


@dataclass(frozen=True)
class Finds:
    """What a criterion finds."""

    criterion: str  # Its name.
    n_images: int  # Images that were looked at.
    n_top: int  # Images of the top quarter, rounded up.
    findings: Mapping[str, Finding]  # By the names of MISTAKES.


def record_mistakes(
    record: PoolRecord, annotations: Mapping[str, Annotation], infos: Mapping[str, ImageInfo]
) -> Mistakes:
    """The mistakes of the detections of a record, image by image in its order.

    DataError where an image of the record has no label, or the record is damaged.
    """
    found = detections_of(record, record.section(PLAIN).image_ids.tolist(), 0.0)
    return mistakes(columns(found, annotations, infos, record.header.class_names))


def finds(rating: Rating, truth: Mistakes) -> Finds:
    """Hold a rating against the mistakes of the same N images, N at least 1."""
    n_images = len(rating.values)
    n_top = math.ceil(TOP_SHARE * n_images)
    found = {}
    for name, words in MISTAKES.items():
        amounts = getattr(truth, name)
        correlation = rank_correlation(rating.values, amounts)
        constant = words if len(np.unique(rating.values)) > 1 else rating.criterion
        found[name] = Finding(
            correlation=correlation,
            undefined=f"{constant}: the same for all images" if correlation is None else None,
            top=round(float(amounts[rating.ranking[:n_top]].mean()), 4),
            all=round(float(amounts.mean()), 4),
        )
    return Finds(rating.criterion, n_images, n_top, found)


def write_finds(path: Path, found: Finds, cycle: int, header: RecordHeader) -> None:
    """Write them atomically: the cycle's model scored the record of that header."""
    content = {
        "cycle": cycle,
        "model_hash": header.model_hash,
        "rule": {"min_score": MIN_SCORE, "found_iou": FOUND_IOU, "tight_iou": TIGHT_IOU},
        **asdict(found),
    }
    write_versioned(path, FORMAT_VERSION, content)


def read_finds(path: Path) -> Finds:
    """Read what `write_finds` wrote; DataError where it is missing, damaged or newer."""
    content = read_versioned(path, FORMAT_VERSION)
    try:
        found = {name: Finding(**content["findings"][name]) for name in MISTAKES}
        return Finds(content["criterion"], content["n_images"], content["n_top"], found)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not say what a criterion finds: {error!r}") from error
