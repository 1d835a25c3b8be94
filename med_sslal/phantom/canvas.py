"""A slice being painted: coordinates, Hounsfield units and the tissue of every pixel."""

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

PIXEL_MM = 0.8
"""Pixel pitch of every phantom image: the field of view shrinks with the size, never a lesion."""

_TEXELS = 128
_COARSE_MM = 4.0
_FINE_MM = 1.0


class Tissue(IntEnum):
    """What a pixel is made of; lesions are placed by it."""

    AIR = 0
    SKIN = 1
    FAT = 2
    MUSCLE = 3
    BONE = 4
    LUNG = 5
    MEDIASTINUM = 6
    BLOOD = 7
    LIVER = 8
    KIDNEY = 9
    ABDOMEN = 10
    BOWEL = 11
    ORGAN = 12


class Texture:
    """Smooth random fields of one patient: they bend the organs and mottle the tissue.

    A field is a pair of periodic pictures, mixed by a slow rotation along z, so that neighbouring
    slices agree.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the fields with the generator of the patient."""
        self._coarse = [_periodic(rng, 3.0) for _ in range(6)]
        self._fine = [_periodic(rng, 2.2) for _ in range(4)]

    def coarse(self, x: np.ndarray, y: np.ndarray, z: float, which: int) -> np.ndarray:
        """Field 0..2 with features of about 30 mm: float32 like `x`, unit variance."""
        return _sample(self._coarse, x / _COARSE_MM, y / _COARSE_MM, z / 45.0, which)

    def fine(self, x: np.ndarray, y: np.ndarray, z: float, which: int) -> np.ndarray:
        """Field 0..1 with features of about 5 mm: float32 like `x`, unit variance."""
        return _sample(self._fine, x / _FINE_MM, y / _FINE_MM, z / 6.0, which)


def _periodic(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Smooth noise that wraps around: float32 [_TEXELS, _TEXELS], unit variance."""
    noise = rng.standard_normal((_TEXELS, _TEXELS), dtype=np.float32)
    pad = int(4 * sigma)
    smooth = cv2.GaussianBlur(np.pad(noise, pad, mode="wrap"), (0, 0), sigma)[pad:-pad, pad:-pad]
    return (smooth - smooth.mean()) / smooth.std()


def _sample(
    fields: list[np.ndarray], x: np.ndarray, y: np.ndarray, angle: float, which: int
) -> np.ndarray:
    """Read field `which` at texel coordinates, wrapping around."""
    first, second = fields[2 * which], fields[2 * which + 1]
    mixed = np.float32(np.cos(angle)) * first + np.float32(np.sin(angle)) * second
    # One texel of padding: interpolation between the last column and the first.
    mixed = np.pad(mixed, (0, 1), mode="wrap")
    return cv2.remap(
        mixed,
        np.mod(x, _TEXELS).astype(np.float32),
        np.mod(y, _TEXELS).astype(np.float32),
        cv2.INTER_LINEAR,
    )


@dataclass(frozen=True)
class Window:
    """Where an image lies in the patient.

    Attributes:
        left: x of the left edge of the first column, mm.
        top: y of the upper edge of the first row, mm.
        size: Rows and columns.
    """

    left: float
    top: float
    size: int

    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres: x float32 [1, size] and y float32 [size, 1], mm."""
        steps = (np.arange(self.size, dtype=np.float32) + 0.5) * np.float32(PIXEL_MM)
        return (self.left + steps)[None, :], (self.top + steps)[:, None]

    def to_pixels(self, points: np.ndarray) -> np.ndarray:
        """Map mm [..., 2] to 0-based pixels whose centres are whole numbers."""
        return (points - np.array([self.left, self.top])) / PIXEL_MM - 0.5


class Canvas:
    """One slice under the brush.

    Attributes:
        window: Its place in the patient.
        z: Its level, mm.
        px, py: Pixel centres, float32 [1, size] and [size, 1], mm.
        x, y: The same bent by the patient's texture, float32 [size, size]: organs are drawn in
            these, so that no outline is a perfect ellipse.
        calm_x, calm_y: The same bent half as much, for skin and chest wall.
        hu: float32 [size, size].
        tissue: uint8 [size, size].
    """

    def __init__(self, window: Window, z: float, texture: Texture) -> None:
        """Start with air."""
        self.window, self.z = window, z
        self.px, self.py = window.centres()
        x = np.broadcast_to(self.px, (window.size, window.size))
        y = np.broadcast_to(self.py, (window.size, window.size))
        self.x = x + 3.2 * texture.coarse(x, y, z, 0) + 0.5 * texture.fine(x, y, z, 0)
        self.y = y + 3.2 * texture.coarse(x, y, z, 1) + 0.5 * texture.fine(x, y, z, 1)
        self.mottle = texture.fine(x, y, z, 1)
        self.drift = texture.coarse(x, y, z, 2)
        self.calm_x, self.calm_y = (self.x + self.px) / 2, (self.y + self.py) / 2
        self.hu = np.full(x.shape, -1000.0, dtype=np.float32)
        self.tissue = np.zeros(x.shape, dtype=np.uint8)

    def paint(self, where: np.ndarray, hu: float | np.ndarray, tissue: Tissue) -> None:
        """Cover the pixels of the bool mask `where`."""
        np.copyto(self.hu, hu, where=where, casting="same_kind")
        self.tissue[where] = tissue

    def radius(self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
        """Elliptic radius of every pixel, 1 on the outline; `angle` in radians turns the axes."""
        dx, dy = self.x - np.float32(cx), self.y - np.float32(cy)
        if angle:
            c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            dx, dy = c * dx + s * dy, c * dy - s * dx
        return np.hypot(dx * np.float32(1 / rx), dy * np.float32(1 / ry))

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> np.ndarray:
        """Bool mask of an ellipse in the slice."""
        return self.radius(cx, cy, rx, ry, angle) < 1

    def section(
        self, centre: tuple[float, float, float], radii: tuple[float, float, float]
    ) -> np.ndarray | None:
        """Radius in the cut of this slice through an ellipsoid (1 on the outline), or None."""
        left = 1 - ((self.z - centre[2]) / radii[2]) ** 2
        if left <= 0.02:
            return None
        scale = left**0.5
        return self.radius(centre[0], centre[1], radii[0] * scale, radii[1] * scale)

    def rod(self, start: tuple[float, float], end: tuple[float, float], width: float) -> np.ndarray:
        """Bool mask of all that is nearer than `width` mm to the line from `start` to `end`."""
        ax, ay = start
        bx, by = end[0] - ax, end[1] - ay
        dx, dy = self.x - np.float32(ax), self.y - np.float32(ay)
        along = np.clip((dx * bx + dy * by) / (bx * bx + by * by), 0, 1)
        return np.hypot(dx - along * bx, dy - along * by) < width
