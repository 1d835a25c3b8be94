"""Pictures of a page: small JPEGs with the boxes drawn over them as vectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from med_sslal.base.types import Annotation, Prediction
from med_sslal.report.html import Content, Html, data_uri, tag
from med_sslal.report.labels import label_text, place_labels

MAX_PICTURES = 240
"""Pictures of one page: with MAX_PICTURE_BYTES this keeps a page far below `html.MAX_BYTES`."""

MAX_PICTURE_BYTES = 30_000

# Detections that are drawn, and those of them with their score: more would hide each other.
_DRAWN, _LABELLED, _CONFIDENT = 10, 4, 0.3

# Of the longer side and of the font size; wide enough for every system's letters.
_FONT, _LETTER = 0.062, 0.62

_SIDES_AND_QUALITIES = ((320, 82), (320, 65), (240, 60), (160, 50), (96, 40))


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery.

    Attributes:
        image: float [H, W, 3] in [0, 1], ORIGINAL pixels.
        truth: Its label.
        found: Detections, None where they were not kept.
        caption: What is written below.
    """

    image: np.ndarray
    truth: Annotation
    found: Prediction | None
    caption: Content


def gallery(pictures: Sequence[Picture], class_names: Sequence[str]) -> Html:
    """Pictures in rows that fit the page: truth solid, detections dashed, ignore regions dotted.

    Args:
        pictures: In order; detections best first.
        class_names: Names without background; written beside a score when there are several.
    """
    return tag(
        "div",
        [
            tag(
                "figure",
                _drawing(picture, class_names),
                tag("figcaption", picture.caption),
            )
            for picture in pictures
        ],
        class_="gallery",
    )


def key(*, with_detections: bool = True) -> Html:
    """What the lines in a gallery mean."""
    found = f"prediction: the best {_DRAWN}, where there is room the best {_LABELLED} with score"

    def entry(kind: str, text: str) -> Html:
        box = tag("rect", x=4, y=3, width=18, height=10, class_=kind)
        return tag("span", tag("svg", box, view_box="0 0 26 16", aria_hidden="true"), text)

    return tag(
        "p",
        entry("truth", "truth"),
        entry("found", found) if with_detections else None,
        entry("ignored", "ignore region"),
        class_="key",
    )


def jpeg(image: np.ndarray, max_bytes: int = MAX_PICTURE_BYTES) -> bytes:
    """A small JPEG of a picture.

    Args:
        image: float [H, W, 3] RGB in [0, 1].
        max_bytes: Sides and quality are lowered until the file is no larger.
    """
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    content = b""
    for side, quality in _SIDES_AND_QUALITIES:
        factor = min(1.0, side / max(pixels.shape[:2]))
        size = tuple(max(1, round(n * factor)) for n in pixels.shape[1::-1])
        small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        content = cv2.imencode(".jpg", small[..., ::-1], options)[1].tobytes()
        if len(content) <= max_bytes:
            break
    return content


def _drawing(picture: Picture, class_names: Sequence[str]) -> Html:
    """The picture in the coordinates of its ORIGINAL pixels, so boxes need no change."""
    height, width = picture.image.shape[:2]
    parts: list[Content] = [
        tag(
            "image",
            href=data_uri(jpeg(picture.image), "image/jpeg"),
            width=width,
            height=height,
            preserve_aspect_ratio="none",
        )
    ]
    for box, ignore in zip(picture.truth.boxes, picture.truth.ignore, strict=True):
        parts.append(_box(box, "ignored" if ignore else "truth"))
    if picture.found is not None:
        found = picture.found
        drawn = slice(_DRAWN)
        for box, score in zip(found.boxes[drawn], found.scores[drawn].tolist(), strict=True):
            parts.append(_box(box, "found" if score >= _CONFIDENT else "found faint"))
        # After all boxes, so that none crosses a label.
        parts.append(_labels(found, class_names, (height, width)))
    return tag("svg", parts, view_box=f"0 0 {width} {height}", role="img")


def _labels(found: Prediction, class_names: Sequence[str], shape: tuple[int, int]) -> list[Html]:
    """Class and score of the best detections."""
    size = _FONT * max(shape)
    scores = found.scores[:_LABELLED].tolist()
    texts = [
        label_text(class_names, label, score)
        for label, score in zip(found.labels[:_LABELLED].tolist(), scores, strict=True)
    ]
    widths, height = [_LETTER * size * len(text) for text in texts], 1.2 * size
    places = place_labels(found.boxes[:_LABELLED], widths, height, shape)
    parts = []
    for text, width, place in zip(texts, widths, places, strict=True):
        if place is not None:
            left, top = place
            plate = {"x": left, "y": top, "width": width, "height": height}
            parts.append(tag("rect", class_="plate", **plate))
            # A text stands on its baseline.
            at = {"x": left + 0.1 * size, "y": top + 0.92 * size}
            parts.append(tag("text", text, **at, style=f"font-size:{size:.4g}px"))
    return parts


def _box(box: np.ndarray, kind: str) -> list[Html]:
    """A rectangle with a dark rim, so that it shows on light and on dark pixels."""
    x1, y1, x2, y2 = (float(value) for value in box)
    place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
    return [tag("rect", class_=name, **place) for name in ("rim", kind)]
