"""Overlap of boxes, in continuous coordinates: every IoU of the program, but for the losses'."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np


def areas(boxes: np.ndarray) -> np.ndarray:
    """Area of each box of [N, 4] xyxy: float64 [N], 0 where an edge lies beyond its opposite."""
    left, top, right, bottom = _edges(boxes)
    return (right - left).clip(min=0) * (bottom - top).clip(min=0)


def paired_intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Area that box i of `first` shares with box i of `second`: float64 [N] from [N, 4] xyxy."""
    a, b = _edges(first), _edges(second)
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return sides[0].clip(min=0) * sides[1].clip(min=0)


def paired_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of box i of `first` with box i of `second`: float64 [N] in [0, 1] from [N, 4] xyxy.

    Both are in the same frame; it is 0 where both boxes have no area.

    Example:
        >>> paired_iou(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 2, 1]])).tolist()
        [0.5]
    """
    intersection = paired_intersection(first, second)
    union = areas(first) + areas(second) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def pairs(
    keys: np.ndarray, others: np.ndarray, at_once: int = 500_000
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair of a row and another row of the same key, about `at_once` pairs at a time.

    `keys`, int64 [N], are the images that boxes belong to, say, and `others`, int64 [K], those of
    other boxes. All pairs of a row come in the same block, however many.

    Yields:
        The row of `keys` and the row of `others` of each pair, in the order of both: int64 [P].
    """
    order = np.argsort(others, kind="stable")
    start = np.searchsorted(others[order], keys, "left")
    count = np.searchsorted(others[order], keys, "right") - start
    rows = np.flatnonzero(count)
    start, count = start[rows], count[rows]
    before = np.concatenate([[0], np.cumsum(count)])
    cuts = np.searchsorted(before, np.arange(at_once, before[-1], at_once))
    for low, high in pairwise([0, *cuts, len(rows)]):
        n = count[low:high]
        first = start[low:high] - (before[low:high] - before[low])
        yield rows[low:high].repeat(n), order[first.repeat(n) + np.arange(n.sum())]


def _edges(boxes: np.ndarray) -> np.ndarray:
    """The boxes column by column, float64 [4, N]; in rows the arithmetic takes twice the time."""
    return np.ascontiguousarray(np.asarray(boxes).T, dtype=np.float64)
