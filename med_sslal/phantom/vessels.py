"""Vessels of the lung: a tree in three dimensions and its picture in one slice."""

from dataclasses import dataclass

import cv2
import numpy as np

from med_sslal.phantom.canvas import PIXEL_MM, Window

_SUPERSAMPLE = 3
_PIECES = 4  # per segment, each of one density
_SHIFT = 4  # fractional bits of OpenCV's drawing coordinates


@dataclass(frozen=True)
class Tree:
    """S straight segments of vessels.

    Attributes:
        start: float64 [S, 3], mm, the end nearer to the root.
        end: float64 [S, 3], mm.
        radius: float64 [S], mm.
    """

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray


def grow_tree(
    rng: np.random.Generator,
    root: tuple[float, float, float],
    centre: tuple[float, float, float],
    radii: tuple[float, float, float],
    n_tips: int,
) -> Tree:
    """Grow `n_tips` vessels from `root` through an ellipsoid of `centre` and half axes `radii`, mm.

    Every tip joins the nearest point that lies closer to the root, and a vessel's radius follows
    from what it feeds (Murray's law: cubes add up), so the tree is thick near the root.
    """
    directions = rng.standard_normal((n_tips, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    tips = np.asarray(centre) + directions * rng.random((n_tips, 1)) ** (1 / 3) * np.asarray(radii)
    points = np.vstack([root, tips])
    distance = np.linalg.norm(points - points[0], axis=1)
    order = np.argsort(distance, kind="stable")
    points, distance = points[order], distance[order]
    parent = np.zeros(len(points), dtype=np.int64)
    begin = 1
    while begin < len(points):
        # Blocks keep it vectorised; tips of one block never join each other.
        stop = min(len(points), begin + max(1, begin // 3))
        gap = np.linalg.norm(points[begin:stop, None] - points[None, :begin], axis=2)
        parent[begin:stop] = np.argmin(gap + 0.15 * distance[None, :begin], axis=1)
        begin = stop
    load = np.ones(len(points))
    for child in range(len(points) - 1, 0, -1):
        load[parent[child]] += load[child]
    return Tree(points[parent[1:]], points[1:], 0.52 * np.cbrt(load[1:]).clip(1.2, 6.5))


def draw_vessels(tree: Tree, window: Window, z: float, thickness: float) -> np.ndarray:
    """Share of vessel in every pixel of a slice at level `z`: float32 [size, size] in [0, 1].

    A vessel that is thinner than the slice's `thickness` in mm fills it only in part.
    """
    half = thickness / 2 + tree.radius
    low = np.minimum(tree.start[:, 2], tree.end[:, 2])
    high = np.maximum(tree.start[:, 2], tree.end[:, 2])
    edge = window.size * PIXEL_MM
    inside = (high > z - half) & (low < z + half)
    for axis, begin in ((0, window.left), (1, window.top)):
        ends = np.stack([tree.start[:, axis], tree.end[:, axis]])
        inside &= (ends.max(0) > begin - 8) & (ends.min(0) < begin + edge + 8)
    start, end, radius, half = (
        array[inside] for array in (tree.start, tree.end, tree.radius, half)
    )
    # Clip every segment to the slab.
    rise = end[:, 2] - start[:, 2]
    rise = np.where(np.abs(rise) < 1e-6, 1e-6, rise)
    at = np.sort(np.stack([(z - half - start[:, 2]) / rise, (z + half - start[:, 2]) / rise]), 0)
    at = at.clip(0, 1)[:, :, None]
    first, last = start + at[0] * (end - start), start + at[1] * (end - start)
    length = np.linalg.norm((last - first)[:, :2], axis=1)
    # A vessel that crosses the slab upright fills its disc; one that lies in it fills the share of
    # the slab that it overlaps, so it fades where it leaves.
    upright = np.exp(-length / (3 * radius))
    steps = np.linspace(0, 1, _PIECES + 1)
    knots = first[:, None] + steps[:, None] * (last - first)[:, None]
    middle = (knots[:, 1:, 2] + knots[:, :-1, 2]) / 2
    top = np.minimum(middle + radius[:, None], z + thickness / 2)
    bottom = np.maximum(middle - radius[:, None], z - thickness / 2)
    lying = (1.5 * (top - bottom) / thickness).clip(0, 1)
    share = lying + (1 - lying) * upright[:, None]

    picture = _draw_rods(knots[:, :, :2] - [window.left, window.top], radius, share, window.size)
    return picture.astype(np.float32) / 255


def _draw_rods(knots: np.ndarray, radius: np.ndarray, share: np.ndarray, size: int) -> np.ndarray:
    """Draw chains of rods with round ends, the densest on top: uint8 [size, size].

    `knots` are float64 [S, _PIECES + 1, 2] in mm from the picture's corner, `radius` float64 [S] in
    mm, and `share` float64 [S, _PIECES] in [0, 1] the density of every piece.
    """
    # OpenCV takes whole numbers of 1 / 2^_SHIFT pixels, counted from the first pixel's centre.
    unit = _SUPERSAMPLE / PIXEL_MM * (1 << _SHIFT)
    centre = 1 << (_SHIFT - 1)
    along = np.diff(knots, axis=1)
    length = np.hypot(along[..., 0], along[..., 1])
    normal = np.stack([-along[..., 1], along[..., 0]], -1)
    normal *= (radius[:, None] / np.maximum(length, 1e-6))[..., None]
    a, b = knots[:, :-1], knots[:, 1:]
    corners = np.stack([a + normal, b + normal, b - normal, a - normal], 2)
    corners = np.rint(corners * unit - centre).astype(np.int32)
    ends = np.rint(knots * unit - centre).astype(int).tolist()
    radii = np.rint(radius * unit).astype(int).tolist()
    values = (255 * share).astype(int).tolist()
    big = np.zeros((size * _SUPERSAMPLE,) * 2, dtype=np.uint8)
    for flat in np.argsort(share, axis=None, kind="stable").tolist():
        i, k = divmod(flat, _PIECES)
        value = values[i][k]
        for end in ends[i][k : k + 2]:
            cv2.circle(big, end, radii[i], value, -1, cv2.LINE_8, _SHIFT)
        cv2.fillConvexPoly(big, corners[i, k], value, cv2.LINE_8, _SHIFT)
    return cv2.resize(big, (size, size), interpolation=cv2.INTER_AREA)
