"""Any slice of a patient in Hounsfield units, and what the scanner makes of it."""

from typing import Any, NamedTuple

import cv2
import numpy as np

from med_sslal.phantom.anatomy import TEXELS, Body, Shape, Tissue

# Pixel pitch of every phantom image: the field of view shrinks with the size, never a lesion.
PIXEL_MM = 0.8
_POINT_SPREAD_PX = 0.8
_GRAIN_PX = 0.6  # blur of the noise
_BEND_MM = 12.0  # hardly anything is bent further


class View(NamedTuple):
    """An image of a patient: the outer edges of the first column and row, and the level, in mm."""

    left: float
    top: float
    size: int
    z: float
    thickness: float
    contrast: float  # medium, from 0 to 1

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres: x float32 [1, size] and y float32 [size, 1], mm."""
        steps = (np.arange(self.size, dtype=np.float32) + 0.5) * np.float32(PIXEL_MM)
        return (self.left + steps)[None, :], (self.top + steps)[:, None]

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map mm [..., 2] to 0-based pixels whose centres are whole numbers."""
        return (points - self[:2]) / PIXEL_MM - 0.5

    def planes(self) -> list[float]:
        """Levels of the planes that the slice averages."""
        return (self.z + self.thickness * np.linspace(-0.4, 0.4, 5)).tolist()


def render(body: Body, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Paint a slice: HU float32 [size, size] with hard edges, and the Tissue uint16 there."""
    coarse, fine = _field(body.coarse, view, 4.0, 45.0), _field(body.fine, view, 1.0, 6.0)
    mottle, drift = fine[..., 1], coarse[..., 2]
    # Organs are drawn in bent coordinates, so that no outline is a perfect ellipse.
    x, y = (view.centres()[i] + 3.2 * coarse[..., i] + 0.5 * fine[..., i] for i in (0, 1))
    hu = np.full(mottle.shape, -1000, dtype=np.float32)
    tissue = np.full(mottle.shape, Tissue.AIR, dtype=np.uint16)
    near, margin = np.array([view.left, view.top, view.z]), np.array([_BEND_MM, _BEND_MM, 0])
    low, high, fov = body.low - near - margin, body.high - near + margin, view.size * PIXEL_MM
    for i in np.flatnonzero((low < (fov, fov, 0)).all(1) & (high > 0).all(1)):
        shape = body.shapes[i]
        first = (low[i, :2] / PIXEL_MM).astype(int).clip(0)
        last = (high[i, :2] / PIXEL_MM + 1).astype(int)
        part = np.s_[first[1] : last[1], first[0] : last[0]]
        square = _square_radius(shape, x[part], y[part], view.z)
        where = (square < 1) & ((tissue[part] & shape.over) > 0)
        tissue[part][where] = shape.tissue
        for share, base, gain, rough in ((1.0, *shape[4:7]), shape.core):
            where &= square < share**2
            np.copyto(hu[part], base + gain * view.contrast + rough * mottle[part], where=where)
        if shape.gas is not None:
            where &= y[part] < shape.start[1] - shape.gas * shape.radii[1]
            np.copyto(hu[part], -880, where=where)
    # Sheets of fat part the muscles.
    hu[(tissue == Tissue.MUSCLE) & (np.abs(drift + 0.3 * mottle) < 0.07)] = -55
    hu += 4 * drift * (tissue > Tissue.SKIN)
    _draw_vessels(body.vessels, view, hu, tissue)
    return hu, tissue


def _field(fields: np.ndarray, view: View, mm: float, turn_mm: float) -> np.ndarray:
    """Fields of `mm` a texel in a slice: float32 [size, size, N]; they turn slowly along z."""
    turn = view.z / turn_mm
    mixed = np.float32(np.cos(turn)) * fields[0] + np.float32(np.sin(turn)) * fields[1]
    x, y = (np.mod(at.ravel() / mm, TEXELS) for at in view.centres())
    return cv2.remap(mixed, *np.meshgrid(x, y), cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def _square_radius(shape: Shape, x: np.ndarray, y: np.ndarray, z: float) -> np.ndarray:
    """How far pixels lie from a shape's line, in its radii, squared."""
    place: tuple[Any, ...] = (x, y, z)
    offset = [(at - a) / r for at, a, r in zip(place, shape.start, shape.radii, strict=True)]
    line = [(b - a) / r for a, b, r in zip(shape.start, shape.end, shape.radii, strict=True)]
    if any(line):
        along = sum(q * d for q, d in zip(offset, line, strict=True)) / sum(d * d for d in line)
        along = np.clip(along, 0, 1)
        offset = [q - d * along for q, d in zip(offset, line, strict=True)]
    return np.add(offset[0] ** 2 + offset[1] ** 2, offset[2] ** 2)


def _draw_vessels(vessels: np.ndarray, view: View, hu: np.ndarray, tissue: np.ndarray) -> None:
    """Blend vessels into HU and tissue: a thin one fills a pixel, and a slice, in part."""
    start, end, radius = vessels[:, :3], vessels[:, 3:6], vessels[:, 6:7]
    low, high = np.minimum(start, end) - radius, np.maximum(start, end) + radius
    first, last = (
        ((edge[:, :2] - view[:2]) / PIXEL_MM + more).astype(int).clip(0, view.size)
        for edge, more in ((low, 0), (high, 1))
    )
    seen = (low[:, 2:] < view.planes()[-1]) & (high[:, 2:] > view.planes()[0])
    # One list of the pixels of all boxes around vessels.
    span = (last - first) * seen
    count = span.prod(1)
    of = np.repeat(np.arange(len(vessels)), count)
    row, column = np.divmod(np.arange(len(of)) - (np.cumsum(count) - count)[of], span[of, 0])
    row, column = row + first[of, 1], column + first[of, 0]
    inside = (tissue[row, column] & vessels[of, 9].astype(np.uint16)) > 0
    row, column, of = row[inside], column[inside], of[inside]
    x, y = view.centres()
    start, line, radius = (a[of].T.astype(np.float32) for a in (start, end - start, radius))
    dx, dy = x[0, column] - start[0], y[row, 0] - start[1]
    share = np.zeros(len(of), dtype=np.float32)
    for level in view.planes():
        offset = np.stack([dx, dy, np.float32(level) - start[2]])
        offset -= line * ((offset * line).sum(0) / (line**2).sum(0)).clip(0, 1)
        distance = np.sqrt((offset**2).sum(0))
        share += np.clip((radius[0] - distance) / PIXEL_MM + 0.5, 0, 1) / 5
    densest, value = np.zeros_like(hu), hu.copy()
    np.maximum.at(densest, (row, column), share)
    value[row, column] = vessels[of, 7] + view.contrast * vessels[of, 8]
    hu += densest * (value - hu)
    tissue[densest > 0.25] = Tissue.BLOOD


def expose(
    hu: np.ndarray, noise_hu: float, streaks_hu: float, rng: np.random.Generator
) -> np.ndarray:
    """Scan float32 [H, W] tissue to uint16 [H, W], HU + 32768 as DeepLesion stores it.

    `noise_hu` is the standard deviation of the noise and `streaks_hu` the strength of metal
    streaks, 0 for none.
    """
    scan: np.ndarray = cv2.GaussianBlur(hu, (7, 7), _POINT_SPREAD_PX)
    if streaks_hu:
        scan += streaks_hu * _streaks(hu.shape, rng)
    scan += noise_hu * correlated_noise(hu.shape, rng)
    return (np.rint(scan).clip(-1024, 3071) + 32768).astype(np.uint16)


def correlated_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Grainy noise: float32 of `shape`, unit variance, lag-1 correlation of about 0.48."""
    kernel = cv2.getGaussianKernel(5, _GRAIN_PX)
    white = rng.standard_normal(shape, dtype=np.float32)
    return cv2.GaussianBlur(white, (5, 5), _GRAIN_PX) / np.float32((kernel**2).sum())


def _streaks(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Rays from a piece of metal near the border: float32 of `shape`, mostly within -1..1."""
    (y, x), angle = np.ogrid[: shape[0], : shape[1]], rng.uniform(0, 2 * np.pi)
    dx, dy = x / shape[1] - 0.5 - 0.42 * np.cos(angle), y / shape[0] - 0.5 - 0.42 * np.sin(angle)
    direction, distance = np.arctan2(dy, dx), np.hypot(dx, dy)
    waves = rng.integers(3, 17, 5), rng.uniform(0, 2 * np.pi, 5)
    rays = sum(np.cos(count * direction + phase) for count, phase in zip(*waves, strict=True))
    streaks = rays / 2.5 * np.exp(-distance / 0.55) + 4 * (distance < 2.5 / shape[1])
    return streaks.astype(np.float32)
