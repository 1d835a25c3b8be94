"""One patient: shapes in millimetres, from the skin inwards, and the fields that bend them."""

from collections.abc import Iterator
from enum import IntFlag
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

BODY_MM = 450.0  # length of the modelled body; normalised z is a share of it
TEXELS = 128  # side of a random field, which wraps around

# What a pixel is made of; lesions are placed by it.
Tissue = IntFlag(
    "Tissue", "AIR SKIN FAT MUSCLE BONE LUNG MEDIASTINUM BLOOD LIVER KIDNEY ABDOMEN BOWEL ORGAN"
)
_CHEST = Tissue.LUNG | Tissue.MEDIASTINUM | Tissue.BLOOD | Tissue.ORGAN
_BELLY = Tissue.LIVER | Tissue.KIDNEY | Tissue.ABDOMEN | Tissue.BOWEL | Tissue.ORGAN
_BODY = Tissue.FAT | Tissue.MUSCLE | Tissue.BONE | _CHEST | _BELLY

Point = tuple[float, float, float]


class Shape(NamedTuple):
    """All that is nearer than `radii` to the line from `start` to `end`: a ball, tube or column."""

    tissue: Tissue
    start: Point
    end: Point
    radii: Point
    hu: float
    gain: float = 0.0  # more HU with all contrast medium
    mottle: float = 0.0  # HU, either way
    core: tuple[float, float, float, float] = (0, 0, 0, 0)  # share of the radii; hu, gain, mottle
    gas: float | None = None  # begins so many radii above the middle of the core
    paired: bool = False  # comes on both sides
    over: Tissue = ~Tissue.AIR  # what it covers


def _chest() -> Iterator[Shape]:
    """What lies between the lungs, in the order of painting, and the diaphragm's domes."""
    fat, blood, organ = Tissue.MEDIASTINUM, Tissue.BLOOD, Tissue.ORGAN
    yield Shape(fat, (0, -14, 80), (0, -14, 700), (34, 58, 100), -92, 0, 12)
    yield Shape(fat, (0, 54, -200), (0, 54, 700), (27, 26, 9), -92, 0, 12)
    yield Shape(fat, (0, 0, -200), (0, 0, 700), (5, 130, 9), -92, 0, 12)
    yield Shape(fat, (34, 2, 122), (34, 2, 122), (16, 20, 32), -92, 0, 12, paired=True)
    yield Shape(fat, (20, -26, 188), (20, -26, 188), (62, 50, 65), -92, 0, 12)
    yield Shape(blood, (20, -26, 188), (20, -26, 188), (59, 47, 62), 70, 0, 4)  # heart
    yield Shape(blood, (-14, -34, 188), (18, -44, 188), (16, 16, 45), 42, 105, 4)
    yield Shape(blood, (38, -18, 188), (52, -26, 188), (15, 15, 38), 42, 105, 4)
    yield Shape(blood, (-6, 4, 184), (22, 6, 184), (14, 14, 42), 42, 105, 4)
    for x, y, r in ((-14, -14, 6), (2, -20, 4.5), (14, -8, 5), (-26, -20, 7), (20, -24, 7)):
        yield Shape(blood, (x, y, -200), (x, y, 66), (r, r, 9), 42, 105, 4)
    yield Shape(blood, (-8, -22, 80), (20, 26, 80), (12.5, 12.5, 12), 42, 105, 4)  # arch
    yield Shape(blood, (-10, -26, 88), (-10, -26, 150), (16, 15, 10), 42, 105, 4)
    yield Shape(blood, (17, -22, 106), (17, -22, 140), (14, 13, 8), 42, 105, 4)
    yield Shape(blood, (12, -6, 119), (-40, 2, 121), (8, 8, 9), 42, 105, 4)
    yield Shape(blood, (16, -10, 115), (44, 6, 118), (8.5, 8.5, 9), 42, 105, 4)
    yield Shape(blood, (-28, -22, 40), (-28, -22, 160), (8, 10, 6), 46, 115, 4)
    yield Shape(organ, (7, 26, -200), (7, 26, 230), (8, 6, 9), 42, 0, 4)  # gullet
    air = (0.81, -985.0, 0.0, 4.0)
    yield Shape(organ, (-1, 8, -200), (-1, 8, 110), (10.5, 10.5, 4), 45, core=air)
    yield Shape(organ, (6, 10, 113), (30, 11, 142), (8, 7.5, 7), 45, core=air, paired=True)
    yield Shape(Tissue.ABDOMEN, (-66, -12, 265), (-66, -12, 700), (84, 90, 70), -104, 0, 5)
    yield Shape(Tissue.ABDOMEN, (66, -5, 275), (66, -5, 700), (84, 90, 70), -104, 0, 5)
    yield Shape(Tissue.ABDOMEN, (0, -10, 300), (0, -10, 700), (150, 110, 30), -104, 0, 5)


def _belly(rng: np.random.Generator) -> Iterator[Shape]:
    """Bowel, which differs from patient to patient, and organs."""
    bowel, organ, fat = Tissue.BOWEL, Tissue.ORGAN, Tissue.ABDOMEN
    fillings = ((18, 0, 0, 0.35), (260, 0, 0, None), (-880, 0, 0, None), (-60, 0, 130, 0.35))
    for corner in product(range(-95, 100, 33), range(-78, 0, 31), range(290, 450, 42)):
        hu, gain, mottle, gas = fillings[rng.choice(4, p=[0.5, 0.15, 0.2, 0.15])]
        r, (x, y, z) = rng.uniform(10, 17), (corner + rng.uniform(0, 14, 3)).tolist()
        core = (1 - 2.2 / r, hu, gain, mottle)
        if rng.random() < 0.6:
            radii = (r * rng.uniform(1, 1.4), r, 24)
            yield Shape(bowel, (x, y, z), (x, y, z), radii, 52, core=core, gas=gas)
    stool = (0.9, -60, 0, 130)
    yield Shape(bowel, (98, 0, 310), (98, 0, 700), (21, 25, 30), 52, 0, 0, stool, 0.35, paired=True)
    food = (0.87, 12, 0, 8)
    yield Shape(bowel, (52, -34, 263), (52, -34, 263), (44, 33, 52), 60, core=food, gas=0.3)
    yield Shape(organ, (92, 28, 267), (92, 28, 267), (31, 46, 60), 70, 52)  # spleen
    yield Shape(organ, (-28, 2, 286), (48, -4, 286), (9, 9, 20), 50, 42, 14)  # pancreas
    yield Shape(Tissue.LIVER, (-66, -10, 273), (-66, -10, 273), (84, 86, 92), 62, 52)
    yield Shape(Tissue.LIVER, (2, -52, 257), (2, -52, 257), (62, 34, 58), 62, 52)
    yield Shape(organ, (-42, -38, 275), (-42, -38, 275), (15, 19, 30), 8)  # gall bladder
    pole, pyramids = (60, 36, 325), (0.74, 49, 65, 25)
    yield Shape(fat, pole, pole, (32, 38, 62), -100, paired=True)
    yield Shape(Tissue.KIDNEY, pole, pole, (27, 32, 56), 38, 130, core=pyramids, paired=True)
    yield Shape(fat, (58, 34, 325), (58, 34, 325), (12, 14, 27), -70, paired=True)
    yield Shape(fat, (54, 32, 325), (28, 26, 325), (6, 6, 12), -70, paired=True)
    yield Shape(Tissue.BLOOD, (58, 34, 325), (24, 24, 322), (3, 3, 6), 42, 105, paired=True)


def _back(rng: np.random.Generator) -> Iterator[Shape]:
    """Great vessels, muscles beside the spine, and bones: they go through chest and belly."""
    blood, bone = Tissue.BLOOD, Tissue.BONE
    yield Shape(Tissue.MUSCLE, (32, 48, 312), (48, 46, 460), (15, 17, 22), 58, paired=True)  # psoas
    yield Shape(blood, (20, 34, 92), (5, 25, 260), (12, 12, 9), 42, 105)
    yield Shape(blood, (5, 25, 260), (5, 25, 700), (10, 10, 9), 42, 105)
    yield Shape(blood, (-23, 5, 175), (-21, 28, 280), (13, 10, 9), 34, 105)
    yield Shape(blood, (-21, 28, 280), (-21, 28, 700), (12, 9, 9), 34, 105)
    yield Shape(bone, (80, 80, 40), (112, 53, 40), (4, 4, 95), 480, 0, 60, paired=True)  # blades
    plate = (0.7, 160, 0, 25)
    yield Shape(bone, (0, -103, 60), (0, -103, 195), (19, 6.5, 10), 420, core=plate)
    first, middle = rng.uniform(-40, -14), 225
    for rib in range(12):
        # A rib slopes down to the front along the wall of the chest, from there on as gristle.
        turns = np.linspace(0.09, min(0.88, 1.3 - 0.085 * rib), 12)
        z = first + 26 * rib + 95 * turns
        wide = np.sqrt(1 - (np.maximum(75 - z, 0) / 130).clip(0, 0.9) ** 2)
        x, y = 134.5 * wide * np.sin(np.pi * turns), 94.5 * wide * np.cos(np.pi * turns) - 10
        points = np.stack([x, y, z], 1).tolist()
        for turn, start, end in zip(turns, points, points[1:], strict=False):
            hu, core = (115, (0, 0, 0, 0)) if turn > 0.74 else (610, (0.6, 230, 0, 30))
            yield Shape(bone, tuple(start), tuple(end), (4.4, 4.4, 6.5), hu, core=core, paired=True)
    # The spine: arches, and bodies with discs between them. Columns of one cut all the way.
    yield Shape(bone, (12, 74, middle), (30, 81, middle), (4.5, 4.5, 2000), 330, 0, 40, paired=True)
    yield Shape(bone, (16, 75, middle), (16, 75, middle), (8, 7, 2000), 390, 0, 40, paired=True)
    yield Shape(bone, (0, 84, middle), (0, 100, middle), (4, 4, 2000), 370, 0, 40)
    yield Shape(bone, (0, 72, middle), (0, 72, middle), (15, 13, 2000), 420, 0, 40)
    yield Shape(Tissue.ORGAN, (0, 50, middle), (0, 50, middle), (20, 16, 2000), 85)
    for z in first + np.arange(0, 600, 30.0):
        yield Shape(bone, (0, 50, z), (0, 50, z + 21), (20, 16, 2), 560, core=(0.88, 205, 0, 35))
    yield Shape(Tissue.ORGAN, (0, 71, middle), (0, 71, middle), (10, 8, 2000), 25)


def _grow_tree(
    rng: np.random.Generator, root: Point, centre: Point, radii: Point, n_tips: int, *values: float
) -> np.ndarray:
    """Vessels from `root` through a ball of `centre` and `radii`: rows as of `Body.vessels`.

    Every tip joins the nearest point that lies closer to the root, and a vessel's radius follows
    from what it feeds (Murray's law: cubes add up), so the tree is thick near the root.
    """
    tips = rng.standard_normal((n_tips, 3))
    tips *= rng.random((n_tips, 1)) ** (1 / 3) / np.linalg.norm(tips, axis=1, keepdims=True)
    points = np.vstack([root, centre + tips * radii])
    points = points[np.argsort(np.linalg.norm(points - points[0], axis=1), kind="stable")]
    parent = np.zeros(len(points), dtype=np.int64)
    begin = 1
    while begin < len(points):
        # In blocks, which is faster; tips of one block never join each other.
        block = slice(begin, begin + max(1, begin // 3))
        parent[block] = cKDTree(points[:begin]).query(points[block])[1]
        begin = block.stop
    load = np.ones(len(points))
    for child in range(n_tips, 0, -1):
        load[parent[child]] += load[child]
    radius = 0.52 * np.cbrt(load[1:]).clip(1.2, 6.5)
    given = np.tile(values, (n_tips, 1))
    return np.column_stack([points[parent[1:]], points[1:], radius, given])


class Body(NamedTuple):
    """One patient: S shapes in the order of painting, V vessels, and random fields; all in mm."""

    half: tuple[float, float]  # half axes of the body: x and y
    shapes: list[Shape]
    low: np.ndarray  # float64 [S, 3], the boxes around them
    high: np.ndarray
    vessels: np.ndarray  # float64 [V, 10]: start, end, radius, HU, gain, tissue that they run in
    coarse: np.ndarray  # float32 [2, TEXELS, TEXELS, 3] of unit variance, to be mixed along z
    fine: np.ndarray  # float32 [2, TEXELS, TEXELS, 2]


def draw_body(rng: np.random.Generator) -> Body:
    """Draw a patient."""
    fat, lung = rng.gamma(4.0, 3.0) + 5, rng.uniform(-885, -835)
    wide, deep = 150 + fat + rng.uniform(-6, 8), 103 + 0.8 * fat + rng.uniform(-5, 6)
    axis: tuple[Point, Point] = ((0, 0, 225), (0, 0, 225))
    # Narrow at the top of the lungs, full from the third rib on.
    inner: tuple[Point, Point] = ((0, -10, 75), (0, -10, 900))
    shapes = [
        Shape(Tissue.SKIN, *axis, (wide, deep, 2000), 25, over=Tissue.AIR),
        Shape(Tissue.FAT, *axis, (wide - 2, deep - 2, 2000), -102),
        Shape(Tissue.MUSCLE, *axis, (wide - fat, deep - fat, 2000), 54),
        Shape(Tissue.MUSCLE, *inner, (136, 96, 103), 54, over=_BODY),
        Shape(Tissue.LUNG, *inner, (128, 88, 95), lung, 0, 9, over=_BODY),
        *_varied(rng, _chest(), 1.5, _CHEST),
        *_varied(rng, _belly(rng), 1.5, _BELLY),
        *_varied(rng, _back(rng), 0.0, _BODY),
    ]
    starts, ends, radii = (np.array([shape[part] for shape in shapes]) for part in (1, 2, 3))
    trees = [
        _grow_tree(rng, (-30, 0, 125), (-70, -5, 130), (62, 88, 135), 2000, 42, 40, Tissue.LUNG),
        _grow_tree(rng, (30, 0, 125), (70, -5, 130), (62, 88, 135), 2000, 42, 40, Tissue.LUNG),
        _grow_tree(rng, (-20, 0, 290), (-66, -10, 273), (84, 86, 92), 200, 60, 78, Tissue.LIVER),
        _grow_tree(rng, (0, 10, 330), (0, -30, 370), (110, 50, 90), 400, 33, 31, Tissue.ABDOMEN),
    ]
    low, high = np.minimum(starts, ends) - radii, np.maximum(starts, ends) + radii
    coarse, fine = _fields(rng, 3.0, 3), _fields(rng, 2.2, 2)
    return Body((wide, deep), shapes, low, high, np.vstack(trees), coarse, fine)


def _varied(
    rng: np.random.Generator, shapes: Iterator[Shape], shift_mm: float, over: Tissue
) -> Iterator[Shape]:
    """Shapes, both of a pair, each a little elsewhere and of another size in every patient."""
    for shape in shapes:
        for side in (1, -1) if shape.paired else (1,):
            dx, dy, dz, more = rng.normal(0, shift_mm, 4).tolist()
            start, end = ((side * x + dx, y + dy, z + dz) for x, y, z in shape[1:3])
            rx, ry, rz = ((1 + 0.03 * more) * radius for radius in shape.radii)
            yield shape._replace(start=start, end=end, radii=(rx, ry, rz), over=over)


def _fields(rng: np.random.Generator, sigma: float, n: int) -> np.ndarray:
    """`n` pairs of smooth noise that wraps around: float32 [2, TEXELS, TEXELS, n]."""
    noise = rng.standard_normal((2, TEXELS, TEXELS, n), dtype=np.float32)
    smooth = gaussian_filter(noise, (0, sigma, sigma, 0), mode="wrap")
    return smooth / smooth.std(axis=(1, 2), keepdims=True)
