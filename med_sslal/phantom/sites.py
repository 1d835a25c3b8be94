"""Where a patient's lesions lie: a place in the body, a crop around it, and the lesions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from med_sslal.phantom.anatomy import Anatomy, Phase
from med_sslal.phantom.canvas import PIXEL_MM, Tissue, Window
from med_sslal.phantom.lesions import Lesion, draw_lesion
from med_sslal.phantom.render import render
from med_sslal.utils.util import numpy_generator

_PLAIN = Phase(blood=60.0, liver=80.0, kidney=80.0)
_MARGIN_MM = 9.0  # from a lesion to the border: 5 px of padding, and the patient moves
_TRIES = 5  # sizes to try, each 0.85 of the one before


@dataclass(frozen=True)
class Place:
    """A region that lesions occur in.

    Attributes:
        coarse_type: DeepLesion's Coarse_lesion_type.
        z: Range of levels, mm.
        x, y: Ranges of the crop's centre, mm; x is mirrored at random where `paired`.
        tissue: What a lesion grows in.
        share: Share of a lesion's radius that must lie in this tissue.
        paired: The region has a left and a right side.
        dicom_window: Display window of such lesions, low and high in HU.
    """

    coarse_type: int
    z: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    tissue: Tissue
    share: float
    paired: bool = True
    dicom_window: tuple[int, int] = (-175, 275)


PLACES = {
    "bone": Place(1, (60, 330), (10, 35), (30, 55), Tissue.BONE, 0.3),
    "abdomen": Place(2, (300, 420), (0, 55), (-45, 0), Tissue.ABDOMEN, 0.5),
    "mediastinum": Place(3, (60, 150), (0, 25), (-25, 15), Tissue.MEDIASTINUM, 0.4),
    "liver": Place(4, (240, 295), (-80, -45), (-35, 10), Tissue.LIVER, 0.9, False),
    "lung": Place(5, (45, 180), (62, 92), (-35, 35), Tissue.LUNG, 0.9, True, (-1500, 500)),
    "kidney": Place(6, (300, 350), (50, 70), (15, 40), Tissue.KIDNEY, 0.4),
    "soft tissue": Place(7, (60, 400), (80, 115), (-45, 45), Tissue.FAT, 0.4),
}
"""Regions by name."""

_OF_DIFFICULTY = {
    "easy": {"lung": 0.90, "soft tissue": 0.07, "abdomen": 0.03},
    "medium": {
        "lung": 0.56,
        "liver": 0.16,
        "mediastinum": 0.12,
        "abdomen": 0.07,
        "kidney": 0.05,
        "bone": 0.04,
    },
    "tiny": {"lung": 1.0},
    "rare": {"lung": 0.75, "liver": 0.25},
}


@dataclass(frozen=True)
class Site:
    """A crop of one patient that every study images again."""

    place: Place
    window: Window
    z: float
    lesions: tuple[Lesion, ...]


def difficulties(seed: int, patient: int) -> Iterator[str]:
    """Deal out the ordinary difficulties so that even a small phantom has its share of each.

    A low-discrepancy sequence over patients and their lesions takes the place of independent
    draws: patients need not know of each other, and the shares come out nearly exact.
    """
    at = numpy_generator("phantom mix", seed).random() + 0.7548776662 * patient
    while True:
        at = (at + 0.5698402910) % 1
        yield "easy" if at < 0.70 else "medium" if at < 0.915 else "tiny"


def draw_site(
    rng: np.random.Generator,
    anatomy: Anatomy,
    size: int,
    first_number: int,
    mix: Iterator[str],
    rare: bool,
    hidden_fraction: float,
) -> Site:
    """Draw a site with one to three lesions, and as many hidden ones as `hidden_fraction` expects.

    `mix` deals out the difficulties; a patient with the `rare` kind of lesions has mostly these.
    """
    difficulty = "rare" if rare and rng.random() < 0.85 else next(mix)
    options = _OF_DIFFICULTY[difficulty]
    name = str(rng.choice(list(options), p=list(options.values())))
    place = PLACES[name]
    side = -1 if place.paired and rng.random() < 0.5 else 1
    fov = size * PIXEL_MM
    # A wide field of view shows the whole body; a narrow one stays within it.
    reach = np.array([max(0.0, 185 - fov / 2), max(0.0, 135 - fov / 2)])
    centre = np.array([side * rng.uniform(*place.x), rng.uniform(*place.y)]).clip(-reach, reach)
    window = Window(float(centre[0] - fov / 2), float(centre[1] - fov / 2), size)
    z = float(rng.uniform(*place.z))
    n_marked = 1 + int(rng.choice(3, p=[0.75, 0.20, 0.05]))
    n_hidden = int(rng.poisson(n_marked * hidden_fraction / (1 - hidden_fraction)))
    tissue = render(anatomy, _PLAIN, window, z, 2.0)[1]
    lesions: list[Lesion] = []
    for i in range(n_marked + n_hidden):
        if i and name == "lung" and difficulty != "rare":
            difficulty = next(mix)
        lesion = draw_lesion(rng, first_number + i, difficulty, name)
        lesion = replace(lesion, hidden=i >= n_marked)
        placed = _placed(rng, lesion, place, tissue, window, z, lesions)
        if placed is not None:
            lesions.append(placed)
    return Site(place, window, z, tuple(lesions))


def _placed(
    rng: np.random.Generator,
    lesion: Lesion,
    place: Place,
    tissue: np.ndarray,
    window: Window,
    z: float,
    others: list[Lesion],
) -> Lesion | None:
    """Put a lesion where it fits, somewhat smaller where it must be; None if nowhere."""
    mask = (tissue == place.tissue).astype(np.uint8)
    if place.tissue == Tissue.LUNG:
        # A lesion may push the thin vessels aside.
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    room = cv2.distanceTransform(mask, cv2.DIST_L2, 5) * PIXEL_MM
    x, y = window.centres()
    fov = window.size * PIXEL_MM
    border = np.minimum(
        np.minimum(x - window.left, window.left + fov - x),
        np.minimum(y - window.top, window.top + fov - y),
    )
    apart = np.full(mask.shape, np.inf)
    for other in others:
        gap = np.hypot(x - other.x, y - other.y) - 1.3 * other.half - 14
        apart = np.minimum(apart, gap)
    share = place.share * (0.6 if rng.random() < 0.2 else 1.0)  # some grow out of the wall
    off_centre = float(rng.uniform(-0.25, 0.25))
    for _ in range(_TRIES):
        half = lesion.half
        fits = (border > 1.3 * half + _MARGIN_MM) & (apart > 1.3 * half)
        fits &= room > max(share * half, PIXEL_MM)
        if lesion.difficulty == "tiny":
            vessel = (tissue != Tissue.BLOOD).astype(np.uint8)
            gap = cv2.distanceTransform(vessel, cv2.DIST_L2, 5) * PIXEL_MM
            beside = fits & (gap > 0.9 * half) & (gap < half + 2.0)
            fits = beside if beside.any() else fits
        spots = np.flatnonzero(fits)
        if len(spots):
            row, column = np.divmod(int(rng.choice(spots)), window.size)
            level = z + off_centre * lesion.half_z
            return replace(lesion, x=float(x[0, column]), y=float(y[row, 0]), z=level)
        lesion = replace(lesion, half=0.85 * half, half_z=0.85 * lesion.half_z)
    return None
