"""Whether objects have an anchor that fits them, and sides of anchors that do.

Shape shorthand: N objects, A anchors at one place of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator

from med_sslal.base.base_model import BaseModel
from med_sslal.model.detector import Detector
from med_sslal.utils.boxes import paired_iou

# From here on an anchor can become a positive, and its proposal teach the box head.
REACHED = 0.5
# What is tried: sides of the finest anchor in strides of its level, and sides a level. One side
# more for each means half as many proposals again, so it must bring something.
FACTORS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
MOST_SIDES, ENOUGH = 3, 0.99
ANCHOR_RULE = (
    f"a level's first side is c times its stride, the others even parts of an octave above: the "
    f"fewest sides (1 to {MOST_SIDES}) with which {ENOUGH:.0%} of the objects have an anchor at an "
    f"IoU of {REACHED} or more, and of c from {FACTORS[0]:g} to {FACTORS[-1]:g} the one with the "
    "highest mean IoU then"
)
# Objects that are tried on: more change the shares by less than a percent.
_MOST_OBJECTS = 5000


@dataclass(frozen=True)
class Grid:
    """Where a detector of a pyramid puts its anchors in an image of (height, width)."""

    shape: tuple[int, int]
    strides: tuple[tuple[int, int], ...]  # (down, right) of each level
    cells: tuple[tuple[int, int], ...]  # (rows, columns) of each level
    sizes: tuple[tuple[int, ...], ...]  # sides in pixels of each level
    ratios: tuple[float, ...]  # height / width


def grid_of(detector: BaseModel, shape: tuple[int, int]) -> Grid | None:
    """The grid of a detector of this program; None of a user's own kind."""
    if not isinstance(detector, Detector):
        return None
    with torch.no_grad():
        batch = detector.eval().transform(torch.zeros(1, 3, *shape), None)
        levels, _ = detector.backbone(batch.tensors)
    height, width = batch.tensors.shape[-2:]
    cells = tuple((level.shape[-2], level.shape[-1]) for level in levels.values())
    strides = tuple((height // rows, width // columns) for rows, columns in cells)
    generator = detector.anchor_generator
    return Grid(shape, strides, cells, generator.sizes, generator.aspect_ratios[0])


def best_overlap(grid: Grid, boxes: np.ndarray) -> np.ndarray:
    """IoU of each object with the anchor that fits it best: float64 [N].

    The `boxes` [N, 4] are in pixels of the run's image_size. The best place of an anchor of given
    sides is the one whose centre lies nearest, in either direction.
    """
    best = np.zeros(len(boxes))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    ratios = (grid.ratios,) * len(grid.sizes)
    shapes = AnchorGenerator(grid.sizes, ratios).cell_anchors
    for anchors, stride, cells in zip(shapes, grid.strides, grid.cells, strict=True):
        step, last = np.array(stride[::-1]), np.array(cells[::-1]) - 1
        places = np.clip(np.rint(centres / step), 0, last) * step
        for anchor in anchors.numpy():
            placed = np.tile(places, 2) + anchor
            best = np.maximum(best, paired_iou(placed, boxes))
    return best


def reached(grid: Grid, boxes: np.ndarray) -> float:
    """Share of the objects, of any number but 0, with an anchor at an IoU of REACHED or more."""
    return float((best_overlap(grid, boxes) >= REACHED).mean())


def suggest_anchors(grid: Grid, boxes: np.ndarray) -> Grid | None:
    """The grid with sides that the objects reach; None without a pyramid.

    Each level has k sides: c times its stride, and parts of an octave above. It is the first k of 1
    to MOST_SIDES with which ENOUGH of the objects are reached, or else the one that reaches most,
    and of the c that reach so many the one whose best anchors overlap the objects most.
    """
    if len(grid.strides) < 2:
        return None
    few = boxes[:: -(-len(boxes) // _MOST_OBJECTS)]
    best, most = grid, (-1.0, 0.0)
    for n_sides in range(1, MOST_SIDES + 1):
        for factor in FACTORS:
            tried = _with_sides(grid, _sides(grid, factor, n_sides))
            overlap = best_overlap(tried, few)
            value = (min(float((overlap >= REACHED).mean()), ENOUGH), float(overlap.mean()))
            if value > most:
                best, most = tried, value
        if most[0] >= ENOUGH:
            break
    return best


def _sides(grid: Grid, factor: float, n_sides: int) -> Sequence[Sequence[int]]:
    return [
        [round(factor * max(stride) * 2 ** (i / n_sides)) for i in range(n_sides)]
        for stride in grid.strides
    ]


def _with_sides(grid: Grid, sides: Sequence[Sequence[int]]) -> Grid:
    return Grid(grid.shape, grid.strides, grid.cells, tuple(map(tuple, sides)), grid.ratios)
