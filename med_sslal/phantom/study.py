"""One patient's images: where lesions lie, studies over time, slices, and their rows."""

from collections.abc import Iterator
from math import ceil
from typing import NamedTuple

import cv2
import numpy as np

from med_sslal.phantom.anatomy import BODY_MM, Body, Tissue, draw_body
from med_sslal.phantom.lesions import Lesion, draw_lesion, measure, paint_lesion
from med_sslal.phantom.render import PIXEL_MM, View, expose, render
from med_sslal.utils.util import numpy_generator

Row = dict[str, str]
Kinds = Iterator[tuple[int, str]]

_SPACINGS = {5.0: 0.5, 2.5: 0.15, 2.0: 0.2, 1.25: 0.05, 1.0: 0.1}
_STEP_MM = 2.0
_RARE_EVERY = 16
_OUTLIER_SHARE = 0.02
_PADDING_PX = 5
_MARGIN_MM = 9.0  # from a lesion to the border: the padding, and the patient moves


class Place(NamedTuple):
    """A region that lesions occur in; ranges of the crop's centre are in mm."""

    coarse_type: int  # DeepLesion's code
    z: tuple[float, float]
    x: tuple[float, float]
    y: tuple[float, float]
    tissue: Tissue  # what a lesion grows in
    share: float  # of its radius that lies there at least
    paired: bool = True  # x is mirrored at random
    dicom_window: tuple[int, int] = (-175, 275)


_PLACES = {
    "bone": Place(1, (60, 330), (10, 35), (30, 55), Tissue.BONE, 0.3),
    "abdomen": Place(2, (300, 420), (0, 55), (-45, 0), Tissue.ABDOMEN, 0.5),
    "mediastinum": Place(3, (60, 150), (0, 25), (-25, 15), Tissue.MEDIASTINUM, 0.4),
    "liver": Place(4, (240, 295), (-80, -45), (-35, 10), Tissue.LIVER, 0.9, False),
    "lung": Place(5, (45, 180), (62, 92), (-35, 35), Tissue.LUNG, 0.9, True, (-1500, 500)),
    "kidney": Place(6, (300, 350), (50, 70), (15, 40), Tissue.KIDNEY, 0.4),
    "soft tissue": Place(7, (60, 400), (80, 115), (-45, 45), Tissue.FAT, 0.4),
}
_MIX = {  # of places, in the order above
    "easy": (0, 0.03, 0, 0, 0.90, 0, 0.07),
    "medium": (0.04, 0.07, 0.12, 0.16, 0.56, 0.05, 0),
    "tiny": (0, 0, 0, 0, 1, 0, 0),
    "rare": (0, 0, 0, 0.25, 0.75, 0, 0),
}


class Site(NamedTuple):
    """A crop of one patient around lesions, which every study images again."""

    place: Place
    view: View
    lesions: list[Lesion]


def draw_patient(
    seed: int, patient: int, split: int, size: int, hidden: float
) -> Iterator[tuple[dict[int, np.ndarray], list[Row]]]:
    """Yield one patient's key slices; no pixel depends on other patients, or on the `split`.

    Each is uint16 [size, size] by slice index, neighbours too, and a row for each lesion: with
    DeepLesion's columns, and those of the side file.
    """
    rng = numpy_generator("phantom", seed, patient)
    # One patient in sixteen carries the rare kind, whatever the number of patients.
    first_rare = numpy_generator("phantom rare", seed).integers(_RARE_EVERY)
    rare = bool((patient + first_rare) % _RARE_EVERY == 0)
    body = draw_body(rng)
    gender, age = str(rng.choice(["F", "M"])), int(np.clip(rng.normal(60, 13), 18, 88))
    # Heavy tail: median 4 images; the rare ones get no tail, or their share would hang on it.
    n_images = int(np.clip(np.rint(rng.lognormal(np.log(4), 0.85)), 1, 40))
    if rare:
        n_images = int(rng.integers(4, 8))
    n_sites = 1 + int(rng.binomial(n_images - 1, 0.4))
    sites: list[Site] = []
    mix = enumerate(_difficulties(seed, patient), start=1)
    while len(sites) < n_sites:
        site = _draw_site(rng, body, size, mix, rare, hidden)
        if not all(lesion.hidden for lesion in site.lesions):
            sites.append(site)
    for image in range(n_images):
        study, which = divmod(image, n_sites)
        common = {
            "Patient_index": str(patient),
            "Study_index": str(study + 1),
            "Series_ID": str(which + 1),
            "Patient_gender": gender,
            "Patient_age": str(age + study // 2),
            "Train_Val_Test": str(split),
        }
        contrast = float(numpy_generator("phantom study", seed, patient, study).uniform(0, 1))
        scanner = numpy_generator("phantom image", seed, patient, study, which)
        yield _scan(scanner, body, sites[which], study, contrast, common)


def _difficulties(seed: int, patient: int) -> Iterator[str]:
    """Deal out the ordinary difficulties so that even a small phantom has its share of each."""
    # A low-discrepancy sequence: patients need not know of each other.
    at = numpy_generator("phantom mix", seed).random() + 0.7548776662 * patient
    while True:
        at = (at + 0.5698402910) % 1
        yield "easy" if at < 0.70 else "medium" if at < 0.915 else "tiny"


def _draw_site(
    rng: np.random.Generator, body: Body, size: int, mix: Kinds, rare: bool, hidden: float
) -> Site:
    """Draw a site with one to three lesions, and as many hidden ones as the share of them expects.

    `mix` deals out numbers and difficulties; a patient with the `rare` kind has mostly that.
    """
    number, difficulty = next(mix)
    if rare and rng.random() < 0.85:
        difficulty = "rare"
    region = str(rng.choice(list(_PLACES), p=_MIX[difficulty]))
    place = _PLACES[region]
    side = -1 if place.paired and rng.random() < 0.5 else 1
    fov = size * PIXEL_MM
    # A wide field of view shows the whole body; a narrow one stays within it.
    reach = (np.array([185, 135]) - fov / 2).clip(0)
    centre = np.array([side * rng.uniform(*place.x), rng.uniform(*place.y)]).clip(-reach, reach)
    left, top = (centre - fov / 2).tolist()
    site = Site(place, View(left, top, size, float(rng.uniform(*place.z)), 2.0, 0.2), [])
    n_marked = 1 + int(rng.choice(3, p=[0.75, 0.20, 0.05]))
    n_hidden = int(rng.poisson(n_marked * hidden / (1 - hidden)))
    tissue = render(body, site.view)[1]
    for i in range(n_marked + n_hidden):
        _place(rng, draw_lesion(rng, number, difficulty, region, i >= n_marked), site, tissue)
        number, following = next(mix)
        if region == "lung" and difficulty != "rare":
            difficulty = following
    return site


def _place(rng: np.random.Generator, lesion: Lesion, site: Site, tissue: np.ndarray) -> None:
    """Add a lesion to a site where it fits, smaller where it must be; not at all if nowhere."""

    def depth(mask: np.ndarray) -> np.ndarray:
        return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) * PIXEL_MM

    mask = (tissue == site.place.tissue).astype(np.uint8)
    if site.place.tissue == Tissue.LUNG:
        # A lesion may push the thin vessels aside.
        mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    room, gap = depth(mask), depth(tissue != Tissue.BLOOD)
    x, y = site.view.centres()
    # mm that are free all around: to the border, and to other lesions.
    free = np.minimum(*(np.minimum(at - at.min(), at.max() - at) for at in (x, y))) - _MARGIN_MM
    for other in site.lesions:
        away = np.hypot(x - other.centre[0], y - other.centre[1])
        free = np.minimum(free, away - 1.3 * other.half - 14)
    share = site.place.share * (0.6 if rng.random() < 0.2 else 1.0)  # some grow out of the wall
    off_centre = float(rng.uniform(-0.25, 0.25))
    for _ in range(5):
        half = lesion.half
        fits = (free > 1.3 * half) & (room > max(share * half, PIXEL_MM))
        if lesion.difficulty == "tiny":
            beside = fits & (gap > 0.9 * half) & (gap < half + 2.0)
            fits = beside if beside.any() else fits
        if fits.any():
            row, column = rng.choice(np.argwhere(fits))
            z = site.view.z + off_centre * lesion.half_z
            centre = (float(x[0, column]), float(y[row, 0]), z)
            site.lesions.append(lesion._replace(centre=centre))
            return
        lesion = lesion.resized(0.85)


def _scan(
    rng: np.random.Generator, body: Body, site: Site, study: int, contrast: float, common: Row
) -> tuple[dict[int, np.ndarray], list[Row]]:
    """Scan a site once; `common` is what the patient and the study give to a row."""
    spacing = float(rng.choice(list(_SPACINGS), p=list(_SPACINGS.values())))
    # The patient never lies in quite the same place again.
    left, top = (site.view[:2] + (rng.uniform(-2, 2, 2) if study else np.zeros(2))).tolist()
    view = View(left, top, site.view.size, site.view.z, spacing, contrast)
    noise, streaks = float(rng.uniform(8, 14)) * (2 if spacing < 2 else 1), 0.0
    failed = bool(rng.random() < _OUTLIER_SHARE)
    if failed and rng.random() < 0.5:
        streaks = float(rng.uniform(150, 350))
    elif failed:
        noise = float(rng.uniform(60, 110))
    lesions = []
    for lesion in site.lesions:
        grown = lesion.resized(float(np.exp(lesion.growth * study).clip(0.75, 1.3)))
        lesions.append(grown._replace(difficulty="outlier") if failed else grown)
    index, reach = round(view.z / spacing) + 1, ceil(_STEP_MM / spacing)
    slices = {}
    for step in range(-reach, reach + 1):
        moved = view._replace(z=view.z + step * spacing)
        hu = render(body, moved)[0]
        for lesion in lesions:
            paint_lesion(hu, lesion, moved)
        slices[index + step] = expose(hu, noise, streaks, rng)
    series = "{Patient_index:0>6}_{Study_index:0>2}_{Series_ID:0>2}".format(**common)
    common = common | {
        "File_name": f"{series}_{index:03d}.png",
        "Key_slice_index": str(index),
        "Coarse_lesion_type": str(site.place.coarse_type),
        "Possibly_noisy": "0",
        "Slice_range": _join(min(slices), max(slices)),
        "Spacing_mm_px_": _join(PIXEL_MM, PIXEL_MM, spacing),
        "Image_size": _join(view.size, view.size),
        "DICOM_windows": _join(*site.place.dicom_window),
    }
    rows = [common | _measured(lesion, measure(lesion, view, rng), body) for lesion in lesions]
    return slices, rows


def _measured(lesion: Lesion, ends: np.ndarray, body: Body) -> Row:
    """What a row says of a lesion and the ends of its axes (see `measure`)."""
    # DeepLesion counts pixels from 1. Rounded first, so that box and axes agree to the last digit.
    points = np.array([[float(f"{value:.6g}") for value in end] for end in ends + 1])
    long, short = np.linalg.norm(ends[1::2] - ends[::2], axis=1)
    # As shares of the body's box.
    at = [(c / half + 1) / 2 for c, half in zip(lesion.centre, body.half, strict=False)]
    return {
        "Measurement_coordinates": _join(*points.ravel()),
        "Bounding_boxes": _join(*(points.min(0) - _PADDING_PX), *(points.max(0) + _PADDING_PX)),
        "Lesion_diameters_Pixel_": _join(long, short),
        "Normalized_lesion_location": _join(*at, lesion.centre[2] / BODY_MM),
        "Lesion": str(lesion.number),
        "Difficulty": lesion.difficulty,
        "Hidden": str(int(lesion.hidden)),
        "Diameter_mm": _join(long * PIXEL_MM),
    }


def _join(*values: float) -> str:
    """Numbers as DeepLesion writes a tuple: six significant digits, comma and space."""
    return ", ".join(f"{value:.6g}" for value in values)
