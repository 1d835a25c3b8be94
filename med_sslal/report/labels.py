"""Where the scores beside boxes go: inside the picture, and none over a better one."""

from collections.abc import Sequence

import numpy as np


def place_labels(
    boxes: np.ndarray, widths: Sequence[float], height: float, shape: tuple[int, int]
) -> list[tuple[float, float] | None]:
    """Find a place for each label: above its box, else just inside it, else below it.

    Args:
        boxes: float [N, 4], best first, in the picture's pixels.
        widths: Width of each label in the same pixels.
        height: Height of one line in the same pixels.
        shape: Height and width of the picture.

    Returns:
        Left and upper edge of each label; None where every place would cover a better label.
    """
    taken: list[tuple[float, float, float]] = []
    places: list[tuple[float, float] | None] = []
    for (x1, y1, _, y2), width in zip(boxes.tolist(), widths, strict=True):
        x = max(0.0, min(x1, shape[1] - width))
        tops = [max(0.0, min(y, shape[0] - height)) for y in (y1 - height, y1, y2)]
        free = [
            y
            for y in tops
            if all(
                x + width <= left or left + wide <= x or abs(y - top) >= height
                for left, top, wide in taken
            )
        ]
        places.append((x, free[0]) if free else None)
        if free:
            taken.append((x, free[0], width))
    return places


def label_text(class_names: Sequence[str], label: int, score: float) -> str:
    """A detection's score, after its class where there are several; long names are cut."""
    if len(class_names) < 2:
        return f"{score:.2f}"
    name = class_names[label - 1]
    short = name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"
    return f"{short} {score:.2f}"
