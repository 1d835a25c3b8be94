"""Weak and strong views of an image: where its boxes lie in them, and what hides there.

Shape shorthand: N boxes of an image, M holes of a view. Boxes are float32 [N, 4] xyxy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from med_sslal.base.types import Frame, Hole

# Of unlabelled images: changed as labelled training images are, and as pseudo-labelled ones are.
VIEWS = ("weak", "strong")
# A box with a shorter side (pixels of the view) teaches nothing,
MIN_SIDE = 2.0
# and no more does one of which a larger part lies outside of the view or in its holes.
MOST_HIDDEN = 0.7


def into_view(
    boxes: Tensor, frame: Frame, size: Sequence[int], *, rounded: bool = False
) -> tuple[Tensor, Tensor]:
    """Boxes of the file (ORIGINAL pixels) in a view of a frame and (height, width).

    What a detector finds in one view, it gives in ORIGINAL pixels: this is the second half of the
    way into another view. Where a view is turned, the corners of a box would come to lie in a
    larger one; `rounded` boxes hold the ellipse in them instead, as the labels of a turned view do.

    Returns:
        The upright boxes around the moved ones, cut at the view's borders, and bool [N]: whether
        one can be learnt from, with sides of MIN_SIDE and not more than MOST_HIDDEN of it hidden.
    """
    matrix = torch.eye(3)
    matrix[:2] = frame.to_original
    back = matrix.inverse()[:2]
    is_turned, back = bool(back[0, 1] or back[1, 0]), back.to(boxes)
    if rounded and is_turned:
        centre, half = moved_ellipses(boxes, back)
        moved = torch.cat([centre - half, centre + half], 1)
    else:
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2) @ back[:, :2].T + back[:, 2]
        moved = torch.cat([corners.amin(1), corners.amax(1)], 1)
    cut = moved.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0]] * 2))
    shown = uncovered_area(cut, frame.holes) / (moved[:, 2:] - moved[:, :2]).prod(1)
    large = ((cut[:, 2:] - cut[:, :2]) >= MIN_SIDE).all(1)
    return cut, large & (shown >= 1 - MOST_HIDDEN)


def moved_ellipses(boxes: Any, matrix: Any) -> tuple[Any, Any]:
    """Centres and half extents, each [N, 2], of the ellipses in boxes, moved by a [2, 3] matrix.

    Of NumPy's arrays or of tensors.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    # Half extent of an ellipse with half axes a, b along x' = m11 x + m12 y: hypot(m11 a, m12 b).
    half = (((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (matrix[:, :2] ** 2).T) ** 0.5
    return centre, half


def uncovered_area(boxes: Tensor, holes: Sequence[Hole]) -> Tensor:
    """The area [N] of each box without what lies in holes, which may overlap; in one frame."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    if not holes:
        return area
    edges = boxes.new_tensor(holes)
    columns, rows = (_Cells(edges[:, axis::2], boxes[:, axis::2]) for axis in (0, 1))
    covered = (rows.inside[:, :, None] & columns.inside[:, None, :]).any(0).to(boxes)
    return area - (rows.shared @ covered * columns.shared).sum(1)


class _Cells:
    """The intervals between all ends of M intervals: in which these lie, and what boxes share."""

    def __init__(self, ends: Tensor, boxes: Tensor) -> None:
        """From [M, 2] and [N, 2] to `inside`, bool [M, cells], and `shared` [N, cells], lengths."""
        cuts = ends.unique()
        low, high = cuts[:-1], cuts[1:]
        self.inside = (ends[:, :1] <= low) & (high <= ends[:, 1:])
        self.shared = (boxes[:, 1:].minimum(high) - boxes[:, :1].maximum(low)).clamp(min=0)


def draw_holes(
    draw: np.random.Generator, number: int, size: tuple[int, int], shares: tuple[float, float]
) -> list[tuple[int, int, int, int]]:
    """Rectangles at random places of a picture of `size` (height, width); they may overlap.

    Their sides are from the first to the second of `shares` of the picture's. Returns x1, y1, x2,
    y2 of each, in whole pixels.
    """
    holes = []
    for _ in range(number):
        rows, columns = (
            max(1, round(share * side))
            for share, side in zip(draw.uniform(*shares, 2), size, strict=True)
        )
        top, left = draw.integers((size[0] - rows + 1, size[1] - columns + 1)).tolist()
        holes.append((left, top, left + columns, top + rows))
    return holes
