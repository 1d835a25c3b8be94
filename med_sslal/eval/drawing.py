"""Boxes on pictures: truth solid, predictions dashed with their score, ignore regions dotted.

What is drawn is one list of marks; a page shows them as vectors over its pictures, everything else
as pixels.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from math import hypot
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from med_sslal.base.types import Annotation, Prediction

TRUTH, PREDICTED, IGNORED = "#2CD5A5", "#FFB000", "#F0F0F0"

MAX_BOXES = 10
"""Drawn on one image at most, best first: a weak detector finds a hundred boxes everywhere."""

# Detections below are drawn faintly.
_CONFIDENT = 0.3

# In pixels, where a picture is drawn as pixels.
_TEXT_HEIGHT = 14

# Of a text's height; wide enough for every system's letters.
_LETTER, _LINE = 0.62, 1.2

# Colour, and pixels drawn and left out in turn, of each kind of mark.
_LOOKS = {
    "truth": (TRUTH, None),
    "found": (PREDICTED, (6.0, 4.0)),
    "faint": (PREDICTED, (3.0, 6.0)),
    "ignored": (IGNORED, (2.0, 4.0)),
}


class Mark(NamedTuple):
    """A box on a picture."""

    kind: str  # `truth`, `found`, `faint` (found with a low score) or `ignored`.
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in the picture's pixels.
    text: str = ""  # What stands beside it.
    # Left and upper edge, width and height of that text; None where it has no room.
    plate: tuple[float, float, float, float] | None = None


def marks_of(
    truth: Annotation | None,
    found: Prediction | None,
    class_names: Sequence[str],
    shape: tuple[int, int],
    *,
    letter: float,
    n_texts: int = MAX_BOXES,
) -> list[Mark]:
    """What is to be drawn on a picture, from back to front.

    `truth` is None where that is not known or not to be seen, `found` where there is nothing to
    show. `shape` is height and width of the picture, and `letter` the height of the texts, in the
    pixels of the boxes. The best `n_texts` detections have their score, where there is room.
    """
    result = []
    if truth is not None:
        for box, ignore in zip(truth.boxes.tolist(), truth.ignore, strict=True):
            result.append(Mark("ignored" if ignore else "truth", tuple(box)))
    if found is not None:
        best = np.argsort(-found.scores, kind="stable")[:MAX_BOXES]
        scores, boxes, height = found.scores[best].tolist(), found.boxes[best], _LINE * letter
        texts = list(map(partial(label_text, class_names), found.labels[best].tolist(), scores))
        widths = [_LETTER * letter * len(text) for text in texts]
        places = place_labels(boxes[:n_texts], widths[:n_texts], height, shape)
        places += [None] * (len(texts) - len(places))
        rows = zip(boxes.tolist(), scores, texts, widths, places, strict=True)
        for box, score, text, width, place in rows:
            plate = None if place is None else (*place, width, height)
            kind = "found" if score >= _CONFIDENT else "faint"
            result.append(Mark(kind, tuple(box), text, plate))
    return result


def draw_boxes(
    image: np.ndarray,
    truth: Annotation | None,
    found: Prediction | None,
    class_names: Sequence[str],
    *,
    width: int,
) -> np.ndarray:
    """Draw a picture with the marks of `marks_of`.

    The `image` is float [H, W, 3], or [H, W] for grey, in [0, 1]. It is scaled to `width` before
    the boxes, which are in its pixels, are drawn.

    Returns:
        uint8 [H * width / W, width, 3].
    """
    factor = width / image.shape[1]
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    size = (width, max(1, round(image.shape[0] * factor)))
    picture = Image.fromarray(pixels).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    marks = marks_of(truth, found, class_names, image.shape[:2], letter=_TEXT_HEIGHT / factor)
    # Of RGBA on RGB, so that what is half transparent is mixed.
    draw = ImageDraw.Draw(picture, "RGBA")
    for mark in marks:
        colour, dash = _LOOKS[mark.kind]
        box = [factor * value for value in mark.box]
        # With a dark rim, it shows on light and on dark pixels.
        _outline(draw, box, (0, 0, 0, 140), 4, dash)
        _outline(draw, box, colour, 2, dash)
    font = text_font(_TEXT_HEIGHT)
    # After all boxes, so that none crosses a text.
    for mark in marks:
        if mark.plate is not None:
            left, top, wide, high = (factor * value for value in mark.plate)
            draw.rectangle((left, top, left + wide, top + high), fill=(0, 0, 0, 160))
            draw.text((left + 1, top + high / 2), mark.text, "#FFD37A", font, anchor="lm")
    return np.asarray(picture)


def text_font(size: float, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The letters of all pictures: those that matplotlib brings, since they have most alphabets."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _outline(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    colour: str | tuple[int, int, int, int],
    width: int,
    dash: tuple[float, float] | None,
) -> None:
    """The four sides of a box, dashed where asked for."""
    x1, y1, x2, y2 = box
    for start, end in pairwise([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]):
        (x, y), (right, down) = start, (end[0] - start[0], end[1] - start[1])
        length = hypot(right, down)
        on, off = dash or (length, 0.0)
        for at in np.arange(0, length, max(on + off, 1)).tolist():
            parts = (at / length, min(at + on, length) / length)
            draw.line([(x + part * right, y + part * down) for part in parts], colour, width)


def above(prediction: Prediction, min_score: float) -> Prediction:
    """The detections with a score of `min_score` or more, in their order."""
    keep = prediction.scores >= min_score
    return Prediction(prediction.boxes[keep], prediction.labels[keep], prediction.scores[keep])


def place_labels(
    boxes: np.ndarray, widths: Sequence[float], height: float, shape: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Find a place for each label: above its box, else just inside it, else below it.

    `boxes` [N, 4] are best first; `widths` of the labels, `height` of one line and `shape` (height,
    width) of the picture are in its pixels, too. Returns left and upper edge of each label; None
    where every place would cover a better one.
    """
    taken: list[tuple[float, float, float]] = []
    places: list[tuple[float, float] | None] = []
    for (x1, y1, _, y2), width in zip(boxes.tolist(), widths, strict=True):
        x = max(0.0, min(x1, shape[1] - width))
        tops = [max(0.0, min(y, shape[0] - height)) for y in (y1 - height, y1, y2)]
        free = (
            y
            for y in tops
            if all(
                x + width <= left or left + wide <= x or abs(y - top) >= height
                for left, top, wide in taken
            )
        )
        top = next(free, None)
        places.append(None if top is None else (x, top))
        if top is not None:
            taken.append((x, top, width))
    return places


def label_text(class_names: Sequence[str], label: int, score: float) -> str:
    """A detection's score, after its class where there are several; long names are cut."""
    if len(class_names) < 2:
        return f"{score:.2f}"
    name = class_names[label - 1]
    short = name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"
    return f"{short} {score:.2f}"
