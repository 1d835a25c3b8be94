"""What all data sets of pictures have in common: pixels, foreign boxes, patients, given splits."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import cv2
import numpy as np
from annotated_types import Predicate, doc

from med_sslal.base.base_dataset import Images, Labels
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.data.bad_samples import BadSamples, ListedError
from med_sslal.data.probe import SUFFIXES, probe_image
from med_sslal.data.splits import SPLIT_NAMES, split_by_group, splits_by
from med_sslal.utils.errors import DataError

logger = logging.getLogger(__name__)

Window = Annotated[
    tuple[float, float], Predicate(lambda window: window[0] < window[1]), doc("the lower one first")
]


@dataclass(frozen=True)
class BoxRecord:
    """One box as an annotation file gives it, not yet trusted."""

    where: str  # file and object, for messages
    name: str  # of the class
    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in continuous ORIGINAL pixels
    ignore: bool  # a crowd or a difficult object


class PictureFrame(Protocol):
    """An image that is not read as a picture file is."""

    @property
    def path(self) -> Path:
        """Its file."""

    def windowed(self, window: Window) -> "PictureFrame":
        """The same image in another window of its values."""

    def read(self, image_id: str, size: tuple[int, int]) -> np.ndarray:
        """As of `Images`, of an image of (height, width)."""


class PictureImages(Images):
    """Pictures in files of their own; every `file_name` starts from the folder `root`.

    But for `frames` by image id: what their `file_name` says is no file.
    """

    def __init__(
        self,
        root: Path,
        infos: Mapping[str, ImageInfo],
        splits: Mapping[str, tuple[str, ...]],
        window: Window | None = None,
        frames: Mapping[str, PictureFrame] | None = None,
    ) -> None:
        super().__init__(infos, splits)
        self.root, self.window, self.frames = root, window, frames or {}

    def read(self, image_id: str) -> np.ndarray:
        """Decode an image: float32 [H, W, 3] RGB in [0, 1], ORIGINAL pixels."""
        size = self.infos[image_id].orig_size
        if image_id in self.frames:
            return self.frames[image_id].read(image_id, size)
        return read_picture(self.path(image_id), size, self.window)

    def windowed(self, window: Window) -> "PictureImages":
        """The same in another window of their values; of 8 bits or in colour as they are."""
        frames = {name: frame.windowed(window) for name, frame in self.frames.items()}
        return PictureImages(self.root, self.infos, self.splits, window, frames)

    def path(self, image_id: str) -> Path:
        """The file of an image."""
        if image_id in self.frames:
            return self.frames[image_id].path
        return self.root / self.infos[image_id].file_name


def make_labels(
    records: Mapping[str, Sequence[BoxRecord]],
    classes: Sequence[str],
    infos: Mapping[str, ImageInfo],
    bad: BadSamples,
) -> Labels:
    """Labels of boxes by image id; a box that is bad is noted and left out.

    A box that reaches over the edge is clipped, and noted where that is by over a pixel. Bad are: a
    class that is not in `classes`, a coordinate that is no finite number, no area, and more than
    half of the area outside. DataError where there is no class.
    """
    if not classes:
        raise DataError("the data has no class: name them in dataset.args.classes")
    numbers = {name: label for label, name in enumerate(classes, start=1)}
    made: dict[str, Annotation] = {}
    notes: list[str] = []
    for image_id, boxes in sorted(records.items()):
        good: list[tuple[np.ndarray, int, bool]] = []
        for record in boxes:
            with bad.noted():
                box = _clipped(record, numbers, infos[image_id].orig_size)
                if np.abs(box - record.box).max() > 1:
                    corners = ", ".join(f"{value:g}" for value in record.box)
                    notes.append(f"{record.where}: box ({corners}) is cut at its image's edge")
                good.append((box, numbers[record.name], record.ignore))
        made[image_id] = Annotation(
            np.array([box for box, _, _ in good], dtype=np.float32).reshape(-1, 4),
            np.array([number for _, number, _ in good], dtype=np.int64),
            np.array([ignore for _, _, ignore in good], dtype=bool),
        )
    return Labels(tuple(numbers), made, tuple(notes))


def _clipped(record: BoxRecord, labels: Mapping[str, int], size: tuple[int, int]) -> np.ndarray:
    """A good box, cut at the edge of an image of (height, width); DataError for a bad one."""
    box = np.array(record.box, dtype=np.float64)
    clipped = np.clip(box, 0, [size[1], size[0]] * 2).astype(np.float32)
    where = f"{record.where}: box ({', '.join(f'{value:g}' for value in box)})"
    if record.name not in labels:
        known = ", ".join(labels)
        raise DataError(f"{record.where}: unknown class '{record.name}'; the classes are {known}")
    if not np.isfinite(box).all():
        raise DataError(f"{where} is not finite")
    if (box[2:] <= box[:2]).any():
        raise DataError(f"{where} has no area (x1, y1, x2, y2 are expected)")
    area, left = (float((b[2:] - b[:2]).astype(np.float64).prod()) for b in (box, clipped))
    if left < area / 2 or (clipped[2:] <= clipped[:2]).any():
        raise DataError(
            f"{where} lies for more than half outside its image of {size[1]}x{size[0]} pixels"
        )
    return clipped


def picture_size(path: Path, window: Window | None = None) -> tuple[int, int]:
    """(height, width) of a PNG, JPEG or TIFF file, from its header.

    DataError where it is missing or damaged, or has 16 bits and there is no window for them.
    """
    probe = probe_image(path)
    found = f"image file {path} has {probe.channels} channel(s) of {probe.bit_depth} bits"
    if probe.bit_depth > 16 or (probe.bit_depth > 8 and probe.channels > 1):
        raise DataError(f"{found}: convert it to 8 bits, or to 16-bit grey")
    if probe.bit_depth > 8 and window is None:
        raise DataError(
            f"{found}, whose range the file does not tell: set dataset.args.window to the lowest "
            "and highest value to be seen, or convert it to 8 bits"
        )
    return probe.height, probe.width


def read_picture(path: Path, size: tuple[int, int], window: Window | None = None) -> np.ndarray:
    """Decode a PNG, JPEG or TIFF file of (height, width): float32 [H, W, 3] RGB in [0, 1].

    An EXIF rotation is not applied: annotation tools count pixels as they are stored. 16-bit grey
    is mapped by the window. DataError where the file is missing, damaged or of another size.
    """
    # Bytes first: cv2.imread tells a missing file from a damaged one by a printed line only.
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read image file {path}: {error.strerror or error}") from error
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if window is not None:
        flags |= cv2.IMREAD_ANYDEPTH
    image = cv2.imdecode(content, flags) if content.size else None
    if image is None:
        raise DataError(f"image file {path} is damaged: its pixels cannot be decoded")
    if image.shape[:2] != size:
        raise DataError(
            f"image file {path} has {image.shape[1]}x{image.shape[0]} pixels now and had "
            f"{size[1]}x{size[0]} when the data set was opened"
        )
    if window is None or image.dtype == np.uint8:
        return np.multiply(image, np.float32(1 / 255), dtype=np.float32)
    return to_unit(image.astype(np.float32), window)


def to_unit(values: np.ndarray, window: Window) -> np.ndarray:
    """Map a window to [0, 1] in place, and clip what lies outside; float32."""
    low, high = window
    values -= np.float32(low)
    values /= np.float32(high - low)
    return np.clip(values, 0, 1, out=values)


def find_pictures(folder: Path, *, endings: bool = False) -> tuple[dict[str, Path], list[Path]]:
    """The pictures below a folder by id, the path there without its ending, and all other files.

    With `endings` the ids keep them. Hidden files are passed over, and folders that are links, of
    which the first is told. DataError where two pictures have one id.
    """
    files: dict[str, Path] = {}
    others, links = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.suffix.lower() in SUFFIXES:
            image_id = (name if endings else name.with_suffix("")).as_posix()
            if image_id in files:
                raise DataError(f"two pictures have one image id: {files[image_id]} and {path}")
            files[image_id] = path
        elif path.is_file():
            others.append(path)
        elif path.is_symlink() and path.is_dir():
            links.append(path)
    if links:
        # Entered, they could bring a picture twice, under two names and into two splits.
        logger.warning(
            "folder %s is a link, one of %d that are not looked into: move the folder there, or "
            "name the one that holds all as root",
            links[0],
            len(links),
        )
    return files, others


def no_picture(folder: Path, key: str) -> DataError:
    """That there is none in the folder which `key` names."""
    state = "holds no picture" if folder.is_dir() else "does not exist"
    return DataError(f"{key}: folder {folder} {state} ({', '.join(SUFFIXES)} are looked for)")


def read_infos(
    root: Path,
    files: Iterable[tuple[str, Path]],
    pattern: str | None,
    bad: BadSamples,
    window: Window | None = None,
) -> dict[str, ImageInfo]:
    """The images whose picture is whole, from image id to file below `root`; `bad` has the rest.

    The patient is what the pattern's first group finds in the image id, by default all of it.
    """
    infos: dict[str, ImageInfo] = {}
    for image_id, path in files:
        with bad.noted():
            size, match = picture_size(path, window), re.search(pattern or "(?s)(.+)", image_id)
            if match is None or not match.group(1):
                raise DataError(
                    f"dataset.args.group_pattern '{pattern}' finds no patient in '{image_id}'"
                )
            name = path.relative_to(root).as_posix()
            infos[image_id] = ImageInfo(image_id, match.group(1), name, size)
    return infos


def make_splits(
    infos: Mapping[str, ImageInfo],
    lists: Mapping[str, Sequence[str]] | None,
    eval_split: float,
    split_seed: int,
) -> dict[str, tuple[str, ...]]:
    """Splits as `lists` of image ids give them, or else drawn (see `split_by_group`).

    All of `infos` are listed; listed ids that are not there (skipped files) are left out. DataError
    where an image or a group (patient) is on two lists, or a list has no image left.
    """
    if lists is None:
        return split_by_group(infos, eval_split, split_seed)
    side: dict[str, str] = {}
    torn: dict[tuple[str, str], str] = {}
    for name in SPLIT_NAMES:
        ids = sorted(set(lists[name]) & infos.keys())
        if not ids:
            raise DataError(f"the list of split '{name}' has no image")
        for image_id in ids:
            group = infos[image_id].group_id
            if side.setdefault(group, name) != name:
                what = "image" if group == image_id else "group (patient)"
                text = f"is in split '{side[group]}' and in '{name}' (image '{image_id}')"
                text = f"{what} '{group}' {text}: each must be in one only"
                torn.setdefault((group, name), text)
    if torn:
        raise ListedError("", list(torn.values()))
    return splits_by(infos, lambda info: side[info.group_id])
