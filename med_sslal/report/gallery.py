"""Pictures of a page: small JPEGs with the boxes drawn over them as vectors."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from med_sslal.eval.drawing import Mark

MAX_PICTURES = 240
"""Pictures of one page: with MAX_PICTURE_BYTES this keeps a page far below `pages.MAX_BYTES`."""

MAX_PICTURE_BYTES = 30_000

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


def jpeg(image: np.ndarray, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """A small JPEG of float [H, W, 3] RGB in [0, 1], its sides and quality such that it fits."""
    pixels = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    stream = io.BytesIO()
    for side, quality in _SIDES_AND_QUALITIES:
        small, stream = pixels.copy(), io.BytesIO()
        small.thumbnail((side, side), Image.Resampling.BOX)
        small.save(stream, "JPEG", quality=quality)
        if stream.tell() <= max_bytes:
            break
    return stream.getvalue()
