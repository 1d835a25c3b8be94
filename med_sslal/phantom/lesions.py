"""Lesions: shape, picture in a slice, and what a radiologist would measure on it."""

from typing import NamedTuple

import cv2
import numpy as np

from med_sslal.phantom.render import PIXEL_MM, View

# Extent in mm (lowest, highest) and roughness of the outline.
_KINDS = {
    "easy": (8, 45, 0.08),
    "medium": (6, 40, 0.13),
    "tiny": (3, 5, 0.04),
    "rare": (8, 32, 0.12),
}
# HU (lowest, highest), gain with all contrast medium, width of the margin in mm; one is drawn.
_VALUES = {
    "lung": [(15, 60, 0, 0.8)],
    "lung medium": [(15, 60, 0, 1.6), (-420, -200, 0, 1.6)],  # solid in part
    "lung rare": [(-690, -560, 0, 3.0)],  # ground glass
    "liver": [(-13, 17, 52, 1.6)],
    "liver rare": [(34, 44, 52, 1.6)],  # nearly as bright as the liver
    "kidney": [(-5, 14, 0, 0.8)],
    "bone": [(20, 60, 0, 0.8), (650, 850, 0, 0.8)],
    "": [(35, 75, 0, 0.8)],
}


class Lesion(NamedTuple):
    """One lesion of a patient; all lengths in mm."""

    number: int  # in the patient, the same in all studies
    difficulty: str  # easy, medium, tiny or rare
    hidden: bool  # in the picture but not in DL_info.csv
    half: float  # of the long axis
    half_z: float
    contour: np.ndarray  # float64 [192, 2], the largest outline, in units of `half`
    spikes: np.ndarray  # the same with thin rays
    hu: float
    gain: float  # more HU with all contrast medium
    edge: float  # width of the margin
    growth: float  # change of the logarithm of the extent per study
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def resized(self, scale: float) -> "Lesion":
        """The lesion, grown or shrunk."""
        return self._replace(half=self.half * scale, half_z=self.half_z * scale)

    def radii(self, view: View) -> list[float]:
        """Half of the long axis in the planes that a slice averages; 0 outside the lesion."""
        depths = (np.array(view.planes()) - self.centre[2]) / self.half_z
        return (self.half * np.sqrt((1 - depths**2).clip(0))).tolist()


def draw_lesion(
    rng: np.random.Generator, number: int, difficulty: str, region: str, hidden: bool
) -> Lesion:
    """Draw the looks of a lesion; its place is not known yet."""
    low, high, rough = _KINDS[difficulty]
    extent = 0.0
    while not low <= extent <= high:
        extent = float(rng.lognormal(*((2.30, 0.75) if region == "lung" else (2.82, 0.73))))
    around = np.linspace(0, 2 * np.pi, 192, endpoint=False)[:, None]
    waves, phase = np.arange(2, 8), rng.uniform(0, 2 * np.pi, 6)
    ripple = rough * rng.uniform(0.2, 1.6, 6) * 2 / waves * np.cos(around * waves + phase)
    axes = np.hstack([np.cos(around), rng.uniform(0.68, 1.0) * np.sin(around)])
    c, s = np.cos(phase[0]), np.sin(phase[0])
    contour = (1 + ripple.sum(1, keepdims=True)) * axes @ [[c, s], [-s, c]]
    rays = np.cos(rng.integers(3, 8) * around + phase[1]).clip(0) ** 16
    spiculated = (region, difficulty) == ("lung", "medium")
    options = _VALUES.get(f"{region} {difficulty}") or _VALUES.get(region, _VALUES[""])
    bottom, top, gain, edge = options[rng.integers(len(options))]
    return Lesion(
        number=number,
        difficulty=difficulty,
        hidden=hidden,
        half=extent / 2,
        half_z=extent / 2 * float(rng.uniform(0.75, 1.1)),
        contour=contour,
        spikes=contour * (1 + 0.5 * spiculated * rays),
        hu=float(rng.uniform(bottom, top)),
        gain=gain,
        edge=edge,
        growth=float(rng.normal(0.0, 0.09)),
    )


def paint_lesion(hu: np.ndarray, lesion: Lesion, view: View) -> None:
    """Blend a lesion into a slice, float32 [size, size] HU, in place."""
    share: np.ndarray = np.zeros(hu.shape, dtype=np.float32)
    for radius in lesion.radii(view):
        if radius:
            # OpenCV takes whole numbers of 1 / 16 pixel.
            points = 16 * view.to_pixels(lesion.centre[:2] + radius * lesion.spikes)
            plane = np.zeros(hu.shape, dtype=np.uint8)
            cv2.fillPoly(plane, [np.rint(points).astype(np.int32)], 255, cv2.LINE_AA, 4)
            share += plane / np.float32(5 * 255)
    share = cv2.GaussianBlur(share, (0, 0), lesion.edge / PIXEL_MM / 3)
    hu += share * (lesion.hu + view.contrast * lesion.gain - hu)


def measure(lesion: Lesion, view: View, rng: np.random.Generator) -> np.ndarray:
    """Measure long and short axis (RECIST) as a reader does, a pixel off at most.

    Returns the ends of the long and of the short axis, float64 [4, 2] in 0-based pixels. The first
    joins the farthest points of the middle plane's outline, the other is the longest chord square
    to it.
    """
    radius = float(np.median([r for r in lesion.radii(view) if r]))
    points = lesion.centre[:2] + radius * lesion.contour
    gap = points[:, None] - points
    first, last = np.unravel_index(np.linalg.norm(gap, axis=2).argmax(), gap.shape[:2])
    axis = (points[last] - points[first]) / np.linalg.norm(points[last] - points[first])
    chord = np.where(np.abs(gap @ axis) < 0.04 * radius, np.abs(gap @ [-axis[1], axis[0]]), 0)
    third, fourth = np.unravel_index(chord.argmax(), chord.shape)
    ends = view.to_pixels(points[[first, last, third, fourth]])
    return ends + rng.normal(0, 0.5, ends.shape).clip(-1, 1)
