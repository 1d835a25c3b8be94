"""One patient's body: its measures and its outer and inner outline."""

from dataclasses import dataclass, field

import numpy as np

from med_sslal.phantom.canvas import Canvas, Texture
from med_sslal.phantom.vessels import Tree, grow_tree

BODY_MM = 450.0
"""Length of the modelled body; normalised z is a share of it."""


@dataclass(frozen=True)
class Loop:
    """A piece of bowel: ellipsoid centre and radii in mm, and what fills it."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    filling: str


@dataclass(frozen=True)
class Anatomy:
    """The measures of one patient.

    Attributes:
        width, depth: Half axes of the body, mm.
        fat: Thickness of the fat under the skin, mm.
        spine_y: y of the vertebral body's centre, mm.
        heart: Half axes of the heart, mm.
        dome: z of the right diaphragm's dome, mm.
        rib_z: Level of the first rib, mm.
        lung_hu: Mean value of the lung.
        loops: The bowel.
        texture: The patient's random fields.
        tree_seed: Seed of the lung vessels; they are grown when a slice needs them.
    """

    width: float
    depth: float
    fat: float
    spine_y: float
    heart: tuple[float, float, float]
    dome: float
    rib_z: float
    lung_hu: float
    loops: tuple[Loop, ...]
    texture: Texture = field(repr=False)
    tree_seed: int
    _trees: dict[int, Tree] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Anatomy":
        """Draw a patient."""
        fat = float(rng.gamma(4.0, 3.0) + 5)
        return cls(
            width=150 + fat + float(rng.uniform(-6, 8)),
            depth=103 + 0.8 * fat + float(rng.uniform(-5, 6)),
            fat=fat,
            spine_y=float(rng.uniform(46, 54)),
            heart=(float(rng.uniform(52, 66)), float(rng.uniform(42, 52)), 62.0),
            dome=float(rng.uniform(185, 205)),
            rib_z=float(rng.uniform(0, 26)),
            lung_hu=float(rng.uniform(-885, -835)),
            loops=_draw_loops(rng),
            texture=Texture(rng),
            tree_seed=int(rng.integers(2**31)),
        )

    def tree(self, side: int) -> Tree:
        """Vessels of the right lung (`side` -1, on the left of the picture) or the left one (1).

        Grown at the first call, because many a crop shows no lung.
        """
        if side not in self._trees:
            rng = np.random.default_rng((self.tree_seed, side + 1))
            self._trees[side] = grow_tree(
                rng, (side * 30, 0, 125), (side * 70, -5, 130), (62, 88, 135), 2000
            )
        return self._trees[side]


@dataclass(frozen=True)
class Phase:
    """What contrast medium does to a study: values of blood, liver and kidney in HU."""

    blood: float
    liver: float
    kidney: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Phase":
        """Draw a study's phase, from no contrast medium to plenty."""
        dose = float(rng.uniform(0, 1))
        return cls(42 + 105 * dose, 62 + 52 * dose, 38 + 130 * dose)


def _draw_loops(rng: np.random.Generator) -> tuple[Loop, ...]:
    """Scatter bowel through the front of the abdomen; the colon runs along both flanks."""
    loops: list[Loop] = []
    for _ in range(200):
        r = float(rng.uniform(10, 18))
        centre = (
            float(rng.uniform(-95, 100)),
            float(rng.uniform(-78, 15)),
            float(rng.uniform(285, BODY_MM)),
        )
        near = any(
            np.hypot(*np.subtract(centre, other.centre)[:2]) < 0.85 * (r + other.radii[0])
            and abs(centre[2] - other.centre[2]) < 24
            for other in loops
        )
        if not near and len(loops) < 42:
            filling = str(
                rng.choice(["fluid", "contrast", "gas", "stool"], p=[0.5, 0.15, 0.2, 0.15])
            )
            loops.append(Loop(centre, (r * float(rng.uniform(1, 1.5)), r, 26.0), filling))
    flanks = [Loop((side * 98, 0, 380), (21, 25, 110), "stool") for side in (-1, 1)]
    return (*loops, *flanks)


def outline(canvas: Canvas, anatomy: Anatomy) -> np.ndarray:
    """Depth below the skin in mm along the ray to the body's axis; negative outside."""
    # Shoulders and hips are left out: the crops show the trunk.
    x, y = np.abs(canvas.calm_x) / anatomy.width, np.abs(canvas.calm_y) / anatomy.depth
    radial = (x**2.5 + y**2.5) ** np.float32(1 / 2.5)
    return np.hypot(canvas.calm_x, canvas.calm_y) * (1 / np.maximum(radial, 0.02) - 1)


def beyond_cavity(canvas: Canvas) -> np.ndarray:
    """Distance in mm outside the inner wall of the trunk; negative inside."""
    # Narrow at the top of the lungs, full from the third rib on.
    swell = 0.45 + 0.55 * np.clip(canvas.z / 75, 0, 1) ** 0.6
    x, y = (
        np.abs(canvas.calm_x) / (128 * swell),
        np.abs(canvas.calm_y + 10) / (88 * (0.35 + 0.65 * swell)),
    )
    radial = (x**2.2 + y**2.2) ** np.float32(1 / 2.2)
    return np.hypot(canvas.calm_x, canvas.calm_y + 10) * (1 - 1 / np.maximum(radial, 0.02))
