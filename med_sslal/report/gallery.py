"""Pictures of a page: small JPEGs with the boxes drawn over them as vectors."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from med_sslal.base.types import Annotation, Prediction
from med_sslal.eval.drawing import Mark, marks_of

MAX_PICTURES = 240
"""Pictures of one page: with MAX_PICTURE_BYTES this keeps a page far below `pages.MAX_BYTES`."""

MAX_PICTURE_BYTES = 30_000

N_TEXTS = 4
"""Detections with their score: more would hide each other."""

# Height of the scores, of a picture's longer side.
_LETTER = 0.062

_SIDES_AND_QUALITIES = ((320, 82), (320, 65), (240, 60), (160, 50), (96, 40))


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery, as a page shows it.

    Attributes:
        image_id: Its name.
        rank: Its place in the query, None where it was not taken.
        values: The criteria's values.
        reason: Why it is here.
        jpeg: The JPEG, as text in base 64.
        size: Width and height in ORIGINAL pixels, those of the marks.
        letter: Height of the texts in these pixels.
        marks: Boxes and scores.
    """

    image_id: str
    rank: int | None
    values: Mapping[str, float]
    reason: str
    jpeg: str
    size: tuple[int, int]
    letter: float
    marks: Sequence[Mark]


def make_picture(
    image_id: str,
    image: np.ndarray,
    truth: Annotation | None,
    found: Prediction | None,
    class_names: Sequence[str],
    *,
    rank: int | None,
    values: Mapping[str, float],
    reason: str,
) -> Picture:
    """One picture of a gallery.

    Args:
        image_id: Its name.
        image: float [H, W, 3] in [0, 1], ORIGINAL pixels.
        truth: Its label, None where it is not known.
        found: Detections, None where they were not kept.
        class_names: Names without background.
        rank: Its place in the query, None where it was not taken.
        values: The criteria's values.
        reason: Why it is here.
    """
    height, width = image.shape[:2]
    letter = _LETTER * max(height, width)
    marks = marks_of(truth, found, class_names, (height, width), letter=letter, n_texts=N_TEXTS)
    content = base64.b64encode(jpeg(image)).decode()
    return Picture(image_id, rank, values, reason, content, (width, height), letter, marks)


def jpeg(image: np.ndarray, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """A small JPEG of a picture.

    Args:
        image: float [H, W, 3] RGB in [0, 1].
        max_bytes: Sides and quality are lowered until the file is no larger.
    """
    pixels = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    stream = io.BytesIO()
    for side, quality in _SIDES_AND_QUALITIES:
        small, stream = pixels.copy(), io.BytesIO()
        small.thumbnail((side, side), Image.Resampling.BOX)
        small.save(stream, "JPEG", quality=quality)
        if stream.tell() <= max_bytes:
            break
    return stream.getvalue()
