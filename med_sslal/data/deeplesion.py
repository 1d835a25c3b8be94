"""DeepLesion (NIH Clinical Center): lesions marked on CT key slices, one class "lesion"."""

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt

from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.data.bad_samples import BadSamples, OnBadSample
from med_sslal.data.deeplesion_csv import FILE_NAME, Lesion, LesionType, read_csv
from med_sslal.data.pictures import Window
from med_sslal.data.probe import ImageProbe
from med_sslal.data.slices import (
    SliceCache,
    SliceImages,
    SliceMode,
    Stack,
    decode_slice,
    find_stack,
)
from med_sslal.data.splits import EvalSplit, split_by_group, splits_by
from med_sslal.utils.errors import ConfigError, DataError
from med_sslal.utils.util import inside

logger = logging.getLogger(__name__)

# The published file: rows, and boxes and images of its split without noisy boxes.
FULL_ROWS = 32735
FULL_COUNTS = {"train": (22901, 22478), "val": (4887, 4791), "test": (4912, 4817)}
# Checking a file waits for the disk or the network, not for the processor.
PROBE_THREADS = 16
# Places below the root, best first: as NIH's archives unpack, nested by some unpackers, the
# archive of key slices, and slices right in the root.
PLACES = ("Images_png", "Images_png/Images_png", "Key_slices", ".")
SERIES = re.compile(r"\d{6}_\d{2,}_\d{2,}", re.ASCII)
SLICE = re.compile(r"(\d{3,})\.png", re.ASCII)


class DeepLesion(BaseDataset):
    """Key slices of DeepLesion with their two neighbours as channels.

    `image_id` is the key slice `PPPPPP_SS_SS_III`, `group_id` the patient. Doubtful ("noisy")
    boxes, and boxes of another type than the wanted one, are kept as ignore regions.
    """

    note: str | None = None

    def __init__(
        self,
        root: str,
        *,
        lesion_type: LesionType = "all",
        dataset_type: Literal["non-specified", "official"] = "non-specified",
        eval_split: EvalSplit = 0.2,
        split_seed: int = 0,
        slice_mode: SliceMode = "interpolate",
        slice_step_mm: Annotated[float, Gt(0)] = 2.0,
        window: Window = (-1024.0, 3071.0),
        cache_dir: str | None = None,
        on_bad_sample: OnBadSample = "error",
    ) -> None:
        """Read the annotation file, find and check the slices, and split by patient.

        Args:
            root: Folder with DL_info.csv and the slices (Images_png/, nested or flat).
            lesion_type: Lesions that count; all, or one coarse type. It defines the data set:
                slices without such a lesion are not in the pool. The real data knows the types
                of its official val and test split only.
            dataset_type: non-specified = select by lesion_type and split by eval_split;
                official = keep the split of DL_info.csv.
            eval_split: Share of patients held out, half for validation and half for test.
            split_seed: Seed of that split, apart from the run's seed.
            slice_mode: The outer two channels: interpolate = slice_step_mm away where the slice
                interval is known; raw = the neighbouring slices; repeat = the key slice.
            slice_step_mm: Distance of the outer channels in mm (interpolate).
            window: Lowest and highest HU of the pixels, mapped to 0 and 1.
            cache_dir: Folder for decoded slices (0.5 MB each), for faster epochs; null = none.
            on_bad_sample: Damaged files, wrong rows: error = list them all and stop; skip = log.
        """
        decode = SliceCache(Path(cache_dir)).read if cache_dir else decode_slice
        folder = Path(root).expanduser()
        bad = BadSamples(on_bad_sample, str(folder))
        table, files = _open_root(folder)
        lesions = read_csv(table, bad)
        n_rows = len(lesions) + len(bad.problems)
        wanted = _keep_images(lesions, lesion_type)
        logger.info("checking the slices of %d images", len(wanted))

        def find(rows: Sequence[Lesion]) -> tuple[Stack, ImageProbe | None, list[str]]:
            paths, first = files.of_series(rows[0].series), rows[0]
            return find_stack(paths, first.slice_index, slice_mode, first.slice_mm, slice_step_mm)

        with ThreadPoolExecutor(PROBE_THREADS) as threads:
            found = dict(zip(wanted, threads.map(find, wanted.values()), strict=True))
        infos, labels = _read_images(folder, wanted, found, lesion_type, bad)
        bad.finish()
        if not infos:
            raise ConfigError(f"{table} has no usable lesion of dataset.args.lesion_type")
        if dataset_type == "official":
            splits = _official_split(infos, lesions, lesion_type)
        else:
            splits = split_by_group(infos, eval_split, split_seed)
        stacks = {name: found[name][0] for name in infos}
        images = SliceImages(infos, splits, self.note, stacks=stacks, window=window, decode=decode)
        super().__init__(images, Labels(("lesion",), labels))
        full = n_rows == FULL_ROWS and (dataset_type, lesion_type) == ("official", "all")
        self._log_counts(lesion_type, full)

    def _log_counts(self, lesion_type: str, full: bool) -> None:
        """Log boxes and images per split, and compare the full file with what is published."""
        if lesion_type != "all":
            logger.info(
                'lesion_type "%s" defines the data set: the pool then holds only slices with '
                "such a lesion; boxes of other types on them are ignore regions. In the real "
                "data types exist only in the official val and test split, so nothing of its "
                "train split is used",
                lesion_type,
            )
        for name, ids in self.images.splits.items():
            labels = self.labels.of(ids).values()
            boxes = sum(label.n_objects for label in labels)
            ignored = sum(int(label.ignore.sum()) for label in labels)
            text = "%s: %d boxes on %d images, %d ignore regions"
            logger.info(text, name, boxes, len(ids), ignored)
            if full and (boxes, len(ids)) != FULL_COUNTS[name]:
                logger.warning(
                    "%s: DeepLesion's full annotation file is known to give %d boxes on %d "
                    "images here; files are missing or changed",
                    name,
                    *FULL_COUNTS[name],
                )


def _read_images(
    root: Path,
    images: Mapping[str, Sequence[Lesion]],
    found: Mapping[str, tuple[Stack, ImageProbe | None, list[str]]],
    lesion_type: str,
    bad: BadSamples,
) -> tuple[dict[str, ImageInfo], dict[str, Annotation]]:
    """Infos and labels of the images that can be read and have a lesion."""
    infos: dict[str, ImageInfo] = {}
    annotations: dict[str, Annotation] = {}
    for image_id, rows in images.items():
        first, (stack, probe, problems) = rows[0], found[image_id]
        if probe is None and not problems:
            problems = [f"key slice {image_id}.png is missing"]
        for problem in problems:
            bad.add(problem)
        if probe is None:
            continue
        path, width, height = stack.files[first.slice_index], probe.width, probe.height
        pixels = f"{width}x{height} pixels"
        if any(sorted(row.image_size) != sorted((width, height)) for row in rows):
            told = f"its Image_size in DL_info.csv is {first.image_size}"
            bad.add(f"image file {path} has {pixels}; {told}")
            continue
        boxes = np.clip([row.box for row in rows], 0, [width, height] * 2).astype(np.float32)
        is_inside = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        for row in compress(rows, ~is_inside):
            bad.add(f"{image_id}.png: box {row.box} lies outside the image of {pixels}")
        kept = list(compress(rows, is_inside))
        annotation = Annotation(
            boxes=boxes[is_inside],
            labels=np.ones(len(kept), dtype=np.int64),
            ignore=np.array([not _wanted(row, lesion_type) for row in kept], dtype=bool),
            sizes_mm=np.array([row.long_diameter_px * row.pixel_mm for row in kept], np.float32),
            subtypes=tuple(row.lesion_type for row in kept),
        )
        if annotation.n_objects:
            annotations[image_id], name = annotation, path.relative_to(root).as_posix()
            spacing = first.pixel_mm if math.isfinite(first.pixel_mm) else None
            place = (spacing, first.series, first.slice_index)
            infos[image_id] = ImageInfo(image_id, first.patient, name, (height, width), *place)
    return infos, annotations


def _official_split(
    infos: Mapping[str, ImageInfo], lesions: Iterable[Lesion], lesion_type: str
) -> dict[str, tuple[str, ...]]:
    """The split that DL_info.csv states, checked to be by patient."""
    side: dict[str, str] = {}
    torn = {row.patient for row in lesions if side.setdefault(row.patient, row.split) != row.split}
    if torn:
        raise DataError(
            f"DL_info.csv: Train_Val_Test puts patient(s) {', '.join(sorted(torn)[:5])} on several "
            'sides; mend the file or use dataset_type "non-specified"'
        )
    splits = splits_by(infos, lambda info: side[info.group_id])
    empty = [name for name, ids in splits.items() if not ids]
    if empty:
        raise ConfigError(
            f'dataset.args.dataset_type "official" with lesion_type "{lesion_type}" leaves '
            f"no image in {', '.join(empty)} (the real data states lesion types in val and "
            'test only): use dataset_type "non-specified"'
        )
    return splits


class SliceFiles:
    """Finds the slices of a series; folders are listed once, no file name is ever guessed."""

    def __init__(self, root: Path) -> None:
        self._folders: dict[str, Path] = {}
        self._flat: dict[str, dict[int, Path]] = defaultdict(dict)
        self._listed: dict[str, Mapping[int, Path]] = {}
        for place in PLACES:
            for path in (root / place).glob("*"):
                if name := FILE_NAME.fullmatch(path.name):
                    self._flat[name.group(1)].setdefault(int(name.group(5)), path)
                elif SERIES.fullmatch(path.name) and path.name not in self._folders:
                    self._folders[path.name] = inside(root / place, path.name)

    def __bool__(self) -> bool:
        return bool(self._folders or self._flat)

    def of_series(self, series: str) -> Mapping[int, Path]:
        """Slice index to file for every slice of `PPPPPP_SS_SS` that exists; may be empty."""
        if series not in self._listed:
            found = dict(self._flat.get(series, {}))
            for path in self._folders[series].glob("*") if series in self._folders else ():
                if name := SLICE.fullmatch(path.name):
                    found[int(name.group(1))] = path
            self._listed[series] = found
        return self._listed[series]


def _open_root(root: Path) -> tuple[Path, SliceFiles]:
    """The annotation file and the slices below the data root; DataError where one is missing."""
    table = root / "DL_info.csv"
    if not root.is_dir():
        missing = f"data root {root} does not exist"
    elif not table.is_file():
        missing = f"{table} does not exist"
    elif files := SliceFiles(root):
        return table, files
    else:
        missing = f"{root} holds no slices (Images_png/PPPPPP_SS_SS/III.png)"
    raise DataError(
        f"DeepLesion: {missing}. Set dataset.args.root to the data; or get it with `python -m "
        f"med_sslal download deeplesion --links FILE --out {root}` (FILE: the list of links that "
        f"NIH ships with the data); or make the stand-in with `python -m med_sslal phantom --out "
        f'{root}`, or use dataset type "DeepLesionPhantom"'
    )


def _keep_images(lesions: Iterable[Lesion], lesion_type: str) -> dict[str, list[Lesion]]:
    """Key slices with a wanted lesion, sorted by id, each with ALL its lesions."""
    images: dict[str, list[Lesion]] = {}
    for lesion in lesions:
        images.setdefault(lesion.image_id, []).append(lesion)
    logger.info(
        "DL_info.csv: %d lesions on %d key slices of %d patients",
        sum(len(rows) for rows in images.values()),
        len(images),
        len({rows[0].patient for rows in images.values()}),
    )
    return {
        image_id: images[image_id]
        for image_id in sorted(images)
        if any(_wanted(lesion, lesion_type) for lesion in images[image_id])
    }


def _wanted(lesion: Lesion, lesion_type: str) -> bool:
    """True for a box to be found, False for an ignore region."""
    return not lesion.noisy and lesion_type in ("all", lesion.lesion_type)
