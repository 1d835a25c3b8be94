"""One patient's images: studies over time, key slices with neighbours, and their rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from med_sslal.phantom.anatomy import BODY_MM, Anatomy, Phase
from med_sslal.phantom.canvas import Window
from med_sslal.phantom.imaging import expose
from med_sslal.phantom.lesions import Lesion, measure, paint_lesion
from med_sslal.phantom.render import render
from med_sslal.phantom.sites import Place, Site, difficulties, draw_site
from med_sslal.utils.util import numpy_generator

_SPACINGS = (5.0, 2.5, 2.0, 1.25, 1.0)
_SPACING_SHARES = (0.5, 0.15, 0.2, 0.05, 0.1)
_STEP_MM = 2.0
_MAX_IMAGES = 40
_RARE_EVERY = 16
_OUTLIER_SHARE = 0.02


@dataclass(frozen=True)
class Mark:
    """A lesion in a key slice.

    Attributes:
        lesion: The lesion at this study.
        difficulty: Its class; `outlier` on a failed scan.
        ends: float64 [4, 2], ends of long and short axis, 0-based pixels.
        location: Normalised x, y, z.
    """

    lesion: Lesion
    difficulty: str
    ends: np.ndarray
    location: tuple[float, float, float]


@dataclass(frozen=True)
class KeySlice:
    """A key slice with its neighbours.

    Attributes:
        patient, study, series, index: Parts of DeepLesion's file name, from 1 on.
        slices: Slice index to uint16 [size, size].
        spacing: Slice interval, mm.
        place: The region of its lesions.
        gender: "F" or "M".
        age: Years.
        marks: Its lesions, hidden ones too.
    """

    patient: int
    study: int
    series: int
    index: int
    slices: dict[int, np.ndarray]
    spacing: float
    place: Place
    gender: str
    age: int
    marks: tuple[Mark, ...]


def draw_patient(
    seed: int, patient: int, size: int, hidden_fraction: float = 0.0
) -> Iterator[KeySlice]:
    """Yield one patient's key slices; nothing in them depends on other patients."""
    rng = numpy_generator("phantom", seed, patient)
    # One patient in sixteen carries the rare kind, whatever the number of patients.
    first_rare = numpy_generator("phantom rare", seed).integers(_RARE_EVERY)
    rare = bool((patient + first_rare) % _RARE_EVERY == 0)
    anatomy = Anatomy.draw(rng)
    gender, age = str(rng.choice(["F", "M"])), int(np.clip(rng.normal(60, 13), 18, 88))
    # Heavy tail: median 4 images; the rare ones get no tail, or their share would hang on it.
    n_images = int(np.clip(np.rint(rng.lognormal(np.log(4), 0.85)), 1, _MAX_IMAGES))
    if rare:
        n_images = int(rng.integers(4, 8))
    n_sites = 1 + int(rng.binomial(n_images - 1, 0.4))
    sites: list[Site] = []
    mix = difficulties(seed, patient)
    while len(sites) < n_sites:
        number = 1 + sum(len(site.lesions) for site in sites)
        site = draw_site(rng, anatomy, size, number, mix, rare, hidden_fraction)
        if any(not lesion.hidden for lesion in site.lesions):
            sites.append(site)
    for image in range(n_images):
        study, which = divmod(image, n_sites)
        yield _image(seed, patient, study, which, anatomy, sites[which], gender, age + study // 2)


def _image(
    seed: int,
    patient: int,
    study: int,
    which: int,
    anatomy: Anatomy,
    site: Site,
    gender: str,
    age: int,
) -> KeySlice:
    """Scan a site once."""
    phase = Phase.draw(numpy_generator("phantom study", seed, patient, study))
    rng = numpy_generator("phantom image", seed, patient, study, which)
    spacing = float(rng.choice(_SPACINGS, p=_SPACING_SHARES))
    # The patient never lies in quite the same place again.
    shift = rng.uniform(-2, 2, 2) if study else np.zeros(2)
    window = Window(
        site.window.left + float(shift[0]), site.window.top + float(shift[1]), site.window.size
    )
    lesions = [lesion.at_study(study) for lesion in site.lesions]
    noise = float(rng.uniform(8, 14)) * (2 if spacing < 2 else 1)
    streaks, failed = 0.0, rng.random() < _OUTLIER_SHARE
    if failed and rng.random() < 0.5:
        streaks = float(rng.uniform(150, 350))
    elif failed:
        noise = float(rng.uniform(60, 110))
    index = round(site.z / spacing) + 1
    reach = ceil(_STEP_MM / spacing)
    slices = {}
    for step in range(-reach, reach + 1):
        z = site.z + step * spacing
        hu = render(anatomy, phase, window, z, spacing)[0]
        for lesion in lesions:
            paint_lesion(hu, lesion, window, z, spacing, phase.liver)
        slices[index + step] = expose(hu, noise, rng, streaks)
    marks = tuple(
        Mark(
            lesion,
            "outlier" if failed else lesion.difficulty,
            measure(lesion, window, site.z, spacing, rng),
            # As shares of the body's box.
            (
                (lesion.x + anatomy.width) / (2 * anatomy.width),
                (lesion.y + anatomy.depth) / (2 * anatomy.depth),
                lesion.z / BODY_MM,
            ),
        )
        for lesion in lesions
    )
    numbers = (patient, study + 1, which + 1, index)
    return KeySlice(*numbers, slices, spacing, site.place, gender, age, marks)
