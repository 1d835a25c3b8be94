"""What a data set is made of and what is wrong with it, found before a run."""

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from med_sslal.base.base_dataset import BaseDataset, Images
from med_sslal.config.signature import convert_arguments, signature
from med_sslal.data.bad_samples import BadSamplesError, ListedError
from med_sslal.data.pictures import PictureImages
from med_sslal.data.probe import probe_image
from med_sslal.logger.progress import Progress
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import usable_cores

# All values that 16 bits hold: what is read so is not cut by a window.
WHOLE_RANGE = (0.0, 65535.0)
DEEP = "16-bit grey"
WINDOW_KEY = "dataset.args.window"
_UNGROUPED = "for the rest of this check each image stands by itself"
# Images that a thread looks at before it reports.
_AT_ONCE = 32


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that a person should look at."""

    level: str  # "error": a run would fail or mislead; "warning": it may be meant
    kind: str  # what it is about, in a word or two
    text: str  # what and where
    image_ids: tuple[str, ...] = ()  # whose pictures show it


@dataclass
class Pixels:
    """What the files of a data set hold."""

    kinds: Counter[str] = field(default_factory=Counter)  # "16-bit grey" to number of images
    # Lowest and highest value of each kind: of pictures as stored, else of [0, 1] as a run has it.
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)  # images of a single value
    same: dict[bytes, list[str]] = field(default_factory=lambda: defaultdict(list))
    # How often each stored value comes in 16-bit files; None where there is no such file.
    histogram: np.ndarray | None = None
    problems: dict[str, str] = field(default_factory=dict)  # image id to why it has no pixels


def open_dataset(
    cls: type[BaseDataset], args: Mapping[str, Any]
) -> tuple[BaseDataset | None, list[Finding]]:
    """Open a data set however much is wrong with it, and say what is.

    `args` are `dataset.args` of a config. What stops it is left out step by step: bad files and
    boxes (and a missing window), then groups, which is told. None where it cannot be opened even
    so.
    """
    known, given = signature(cls).arguments, dict(args)
    skips = given.get("on_bad_sample") == "skip"
    steps: list[dict[str, Any]] = [
        {"on_bad_sample": "error"},
        {"on_bad_sample": "skip"},
        {"group_key": None, "group_pattern": None},
    ]
    findings: dict[str, Finding] = {}
    for changes in steps:
        given |= {name: value for name, value in changes.items() if name in known}
        if "window" in known and any(WINDOW_KEY in text for text in findings):
            given["window"] = list(WHOLE_RANGE)
        try:
            with _silent():
                data = cls(**convert_arguments(cls, given))
            if changes is steps[-1]:
                findings["groups"] = Finding("warning", "groups", _UNGROUPED)
            # Of bad files alone nothing is left to look at.
            return (data if data.images.infos else None), list(findings.values())
        except UserError as error:
            torn = isinstance(error, ListedError) and not isinstance(error, BadSamplesError)
            left_out = skips and isinstance(error, BadSamplesError)
            level, rest = ("warning", " (left out)") if left_out else ("error", "")
            kind = "groups" if torn else "files and labels"
            for text in error.problems if isinstance(error, ListedError) else [str(error)]:
                findings.setdefault(text, Finding(level, kind, f"{text}{rest}"))
    return None, list(findings.values())


@contextmanager
def _silent() -> Iterator[None]:
    """No line of the data sets' own: what they would say is told once, in the end."""
    logger = logging.getLogger("med_sslal.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class _Look(NamedTuple):
    """One image, looked at."""

    image_id: str
    kind: str
    low: float | None = None
    high: float | None = None
    digest: bytes = b""
    problem: str | None = None


def look_at_pixels(images: Images, *, fast: bool) -> Pixels:
    """Read every image on all cores; `fast` reads headers alone.

    Of the pixels nothing is kept but a hash, two values, and the histogram of 16-bit files.
    """
    result, ids = Pixels(), tuple(images.infos)
    blocks = [ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE)]
    name = "reading headers" if fast else "decoding images"
    with ThreadPoolExecutor(usable_cores()) as threads, Progress(name, len(ids)) as progress:
        try:
            for looks, histogram in threads.map(partial(_look_at, images, fast), blocks):
                if histogram is not None:
                    before = result.histogram
                    result.histogram = histogram if before is None else before + histogram
                for look in looks:
                    _note(result, look)
                    progress.advance()
        finally:
            # Ctrl-C does not wait for what is left.
            threads.shutdown(cancel_futures=True)
    return result


def _look_at(
    images: Images, fast: bool, ids: Sequence[str]
) -> tuple[list[_Look], np.ndarray | None]:
    looks, histogram = [], None
    for image_id in ids:
        kind, source, picture = "mapped to 0..1", images, _picture(images, image_id)
        try:
            if picture is not None:
                stored, file = picture
                probe = probe_image(file)
                kind = f"{probe.bit_depth}-bit {'grey' if probe.channels < 3 else 'colour'}"
                source = stored if kind == DEEP else images
            if fast:
                looks.append(_Look(image_id, kind))
                continue
            pixels = source.read(image_id)
            if kind == DEEP:
                pixels = np.rint(pixels[..., 0] * WHOLE_RANGE[1]).astype(np.int64)
                values = np.bincount(pixels.ravel(), minlength=65536)
                histogram = values if histogram is None else histogram + values
            digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
            digest.update(np.ascontiguousarray(pixels).data)
            unit = 255 if kind.startswith("8-bit") else 1
            low, high = (round(float(value) * unit, 4) for value in (pixels.min(), pixels.max()))
            looks.append(_Look(image_id, kind, low, high, digest.digest()))
        except DataError as error:
            looks.append(_Look(image_id, kind, problem=str(error)))
    return looks, histogram


def _picture(images: Images, image_id: str) -> tuple[PictureImages, Path] | None:
    """The file of an image that is a picture, and the images as stored, over 65535."""
    if not isinstance(images, PictureImages) or image_id in images.frames:
        return None
    stored = copy(images)
    stored.window = WHOLE_RANGE
    return stored, images.path(image_id)


def _note(result: Pixels, look: _Look) -> None:
    result.kinds[look.kind] += 1
    if look.problem is not None:
        result.problems[look.image_id] = look.problem
    if look.low is None or look.high is None:
        return
    low, high = result.ranges.get(look.kind, (look.low, look.high))
    result.ranges[look.kind] = min(low, look.low), max(high, look.high)
    if look.low == look.high:
        result.flat.append(look.image_id)
    else:
        result.same[look.digest].append(look.image_id)
