"""Lesions: shape, picture in a slice, and what a radiologist would measure on it."""

from dataclasses import dataclass, replace

import numpy as np

from med_sslal.phantom.canvas import PIXEL_MM, Window

_CONTOUR = 96


@dataclass(frozen=True)
class Lesion:
    """One lesion of a patient.

    Attributes:
        number: Its number in the patient, the same in all studies.
        difficulty: easy, medium, tiny or rare.
        x, y, z: Centre, mm.
        half: Half of the long axis, mm.
        ratio: Short axis over long axis.
        angle: Direction of the long axis, radians.
        half_z: Half extent along z, mm.
        ripple: float64 [2, K]: amplitude and phase of the waves 2..K+1 of its outline.
        hu: Value in HU, or difference to the liver where `in_liver`.
        in_liver: See `hu`.
        edge: Width of its margin, mm.
        core: Added to the value at its centre, HU (necrosis).
        spicules: Number of thin rays.
        growth: Change of the logarithm of the extent per study.
        hidden: In the picture but not in DL_info.csv.
    """

    number: int
    difficulty: str
    x: float
    y: float
    z: float
    half: float
    ratio: float
    angle: float
    half_z: float
    ripple: np.ndarray
    hu: float
    in_liver: bool = False
    edge: float = 0.8
    core: float = 0.0
    spicules: int = 0
    growth: float = 0.0
    hidden: bool = False

    def at_study(self, study: int) -> "Lesion":
        """The lesion as it is `study` studies after the first."""
        scale = float(np.clip(np.exp(self.growth * study), 0.75, 1.3))
        return replace(self, half=self.half * scale, half_z=self.half_z * scale)

    def outline(self, angle: np.ndarray) -> np.ndarray:
        """Radius over the ellipse's at `angle` (seen from the lesion's own axes)."""
        waves = np.arange(2, 2 + self.ripple.shape[1])
        phase = angle[..., None] * waves + self.ripple[1]
        return 1 + (self.ripple[0] * np.cos(phase)).sum(-1)

    def shrink(self, z: float) -> float:
        """Extent in the plane at level `z` over the largest one; 0 outside the lesion."""
        return float(np.sqrt(max(0.0, 1 - ((z - self.z) / self.half_z) ** 2)))


def draw_lesion(rng: np.random.Generator, number: int, difficulty: str, place: str) -> Lesion:
    """Draw the looks of a lesion of the region `place`; its position is 0 until it is placed."""
    mean, sd = (2.30, 0.75) if place == "lung" else (2.82, 0.73)
    low, high = {
        "easy": (8.0, 45.0),
        "medium": (6.0, 40.0),
        "tiny": (3.0, 5.0),
        "rare": (8.0, 32.0),
    }[difficulty]
    extent = 0.0
    while not low <= extent <= high:
        extent = float(rng.lognormal(mean, sd))
    rough = {"easy": 0.08, "medium": 0.13, "tiny": 0.04, "rare": 0.12}[difficulty]
    waves = np.arange(2, 8)
    ripple = np.stack(
        [rough * rng.uniform(0.2, 1.6, len(waves)) * (2 / waves), rng.uniform(0, 2 * np.pi, 6)]
    )
    lesion = Lesion(
        number=number,
        difficulty=difficulty,
        x=0.0,
        y=0.0,
        z=0.0,
        half=extent / 2,
        ratio=float(rng.uniform(0.68, 1.0)),
        angle=float(rng.uniform(0, np.pi)),
        half_z=extent / 2 * float(rng.uniform(0.75, 1.1)),
        ripple=ripple,
        hu=float(rng.uniform(15, 60)),
        growth=float(rng.normal(0.0, 0.09)),
    )
    return _dress(rng, lesion, place)


def _dress(rng: np.random.Generator, lesion: Lesion, place: str) -> Lesion:
    """Give a lesion the density of its kind."""
    rare = lesion.difficulty == "rare"
    core = -30.0 if lesion.half > 9 else 0.0
    if place == "lung":
        if rare:  # ground glass
            return replace(lesion, hu=float(rng.uniform(-690, -560)), edge=3.0)
        if lesion.difficulty == "medium":
            part_solid = rng.random() < 0.5
            hu = float(rng.uniform(-420, -200)) if part_solid else lesion.hu
            return replace(lesion, hu=hu, edge=1.6, spicules=int(rng.integers(3, 8)))
        return replace(lesion, core=core)
    if place == "liver":
        low, high = (-28, -18) if rare else (-75, -45)
        return replace(lesion, hu=float(rng.uniform(low, high)), in_liver=True, edge=1.6)
    if place == "kidney":
        return replace(lesion, hu=float(rng.uniform(-5, 14)))
    if place == "bone":
        hu = float(rng.uniform(20, 60)) if rng.random() < 0.5 else float(rng.uniform(650, 850))
        return replace(lesion, hu=hu)
    return replace(lesion, hu=float(rng.uniform(35, 75)), core=core)


def _cover(lesion: Lesion, dx: np.ndarray, dy: np.ndarray, shrink: float) -> np.ndarray:
    """Share of lesion in every pixel of a plane, by distance from its outline."""
    c, s = np.cos(lesion.angle), np.sin(lesion.angle)
    along, across = c * dx + s * dy, (c * dy - s * dx) / lesion.ratio
    distance, angle = np.hypot(along, across), np.arctan2(across, along)
    limit = lesion.half * shrink * lesion.outline(angle)
    cover = np.clip((limit - distance) / lesion.edge + 0.5, 0, 1)
    if lesion.spicules:
        turn = np.cos(lesion.spicules * angle + lesion.ripple[1, 0])
        # Rays keep about the same width in mm as they leave the lesion.
        ray = np.clip(1 - (1 - turn) * (distance * lesion.spicules) ** 2 / 8, 0, 1)
        cover = np.maximum(cover, 0.55 * ray * np.clip(1.5 - distance / limit, 0, 1))
    return cover


def paint_lesion(
    hu: np.ndarray, lesion: Lesion, window: Window, z: float, thickness: float, liver_hu: float
) -> None:
    """Blend a lesion into float32 [size, size] HU of a slice at level `z`, in place.

    The slice averages the planes within its `thickness`; lengths in mm.
    """
    x, y = window.centres()
    near_x = np.flatnonzero(np.abs(x[0] - lesion.x) < 1.8 * lesion.half + 4)
    near_y = np.flatnonzero(np.abs(y[:, 0] - lesion.y) < 1.8 * lesion.half + 4)
    shrinks = [lesion.shrink(level) for level in _planes(z, thickness)]
    if not len(near_x) or not len(near_y) or not any(shrinks):
        return
    part = np.ix_(near_y, near_x)
    dx, dy = x[:, near_x] - lesion.x, y[near_y] - lesion.y
    cover = np.zeros((len(near_y), len(near_x)))
    for shrink in shrinks:
        if shrink:
            cover += _cover(lesion, dx, dy, shrink) / len(shrinks)
    depth = np.clip(1 - np.hypot(dx, dy) / lesion.half, 0, 1)
    value = lesion.hu + lesion.in_liver * liver_hu + lesion.core * depth
    hu[part] += (cover * (value - hu[part])).astype(np.float32)


def _planes(z: float, thickness: float) -> np.ndarray:
    """Levels of the planes that a slice averages."""
    return z + thickness * np.linspace(-0.4, 0.4, 5)


def measure(
    lesion: Lesion, window: Window, z: float, thickness: float, rng: np.random.Generator
) -> np.ndarray:
    """Measure long and short axis (RECIST) as a reader does, a pixel off at most.

    The outline is that of the middle one of the averaged planes that cut the lesion. The long axis
    joins its two farthest points; the short one is the longest chord square to it.

    Returns:
        float64 [4, 2]: ends of the long and of the short axis, 0-based pixels.
    """
    shrinks = [lesion.shrink(level) for level in _planes(z, thickness)]
    shrink = float(np.median([value for value in shrinks if value]))
    angle = np.linspace(0, 2 * np.pi, _CONTOUR, endpoint=False)
    radius = lesion.half * shrink * lesion.outline(angle)
    along, across = radius * np.cos(angle), radius * np.sin(angle) * lesion.ratio
    c, s = np.cos(lesion.angle), np.sin(lesion.angle)
    points = np.stack([lesion.x + c * along - s * across, lesion.y + s * along + c * across], 1)
    gap = points[:, None] - points[None]
    first, last = np.unravel_index(np.argmax(np.hypot(*gap.transpose(2, 0, 1))), gap.shape[:2])
    axis = points[last] - points[first]
    axis /= np.linalg.norm(axis)
    slant = np.abs(gap @ axis)
    chord = np.where(
        slant < 2 * np.pi * lesion.half / _CONTOUR, np.abs(gap @ [-axis[1], axis[0]]), 0
    )
    third, fourth = np.unravel_index(np.argmax(chord), chord.shape)
    ends = window.to_pixels(points[[first, last, third, fourth]])
    return ends + rng.normal(0, 0.5, ends.shape).clip(-1, 1)


def extent_mm(points: np.ndarray) -> tuple[float, float]:
    """Long and short diameter in mm of the ends that `measure` returns."""
    lengths = np.linalg.norm(points[1::2] - points[::2], axis=1) * PIXEL_MM
    return float(lengths[0]), float(lengths[1])
