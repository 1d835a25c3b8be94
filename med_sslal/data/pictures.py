"""What COCO and Pascal VOC have in common: 8-bit pictures, foreign boxes, given splits."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from med_sslal.base.base_dataset import Images
from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.data.bad_samples import BadSamples
from med_sslal.data.probe import probe_image
from med_sslal.data.splits import SPLIT_NAMES, log_split
from med_sslal.utils.errors import DataError


@dataclass(frozen=True)
class BoxRecord:
    """One box as an annotation file gives it, not yet trusted.

    Attributes:
        where: File and object, for messages.
        name: Class name.
        box: x1, y1, x2, y2 in continuous ORIGINAL pixels.
        ignore: True for a crowd or a difficult object.
    """

    where: str
    name: str
    box: tuple[float, float, float, float]
    ignore: bool


def class_labels(classes: Sequence[str]) -> dict[str, int]:
    """Class name to label, from 1 on.

    Raises:
        DataError: There is no class.
    """
    if not classes:
        raise DataError("the data has no class: name them in dataset.args.classes")
    return {name: label for label, name in enumerate(classes, start=1)}


def make_annotation(
    records: Sequence[BoxRecord],
    labels: Mapping[str, int],
    size: tuple[int, int],
    bad: BadSamples,
) -> Annotation:
    """Check the boxes of one image and make its label.

    A box that reaches over the edge is clipped. Bad are: a class that is not in `labels`, a
    coordinate that is no finite number, no area, and more than half of the area outside.

    Args:
        records: The boxes.
        labels: Class name to label.
        size: (height, width) of the image.
        bad: Collects what is wrong; such boxes are left out.
    """
    good: list[tuple[np.ndarray, int, bool]] = []
    limit = np.array([size[1], size[0]] * 2, dtype=np.float64)
    for record in records:
        box = np.array(record.box, dtype=np.float64)
        clipped = np.clip(box, 0, limit).astype(np.float32)
        text = ", ".join(f"{value:g}" for value in box)
        if record.name not in labels:
            known = ", ".join(labels)
            bad.add(f"{record.where}: unknown class '{record.name}'; the classes are {known}")
        elif not np.isfinite(box).all():
            bad.add(f"{record.where}: box ({text}) is not finite")
        elif (box[2:] <= box[:2]).any():
            bad.add(f"{record.where}: box ({text}) has no area (x1, y1, x2, y2 are expected)")
        elif _area(clipped) < _area(box) / 2 or (clipped[2:] <= clipped[:2]).any():
            bad.add(
                f"{record.where}: box ({text}) lies for more than half outside its image of "
                f"{size[1]}x{size[0]} pixels"
            )
        else:
            good.append((clipped, labels[record.name], record.ignore))
    if not good:
        return Annotation.empty()
    boxes, numbers, ignore = zip(*good, strict=True)
    return Annotation(
        np.stack(boxes), np.array(numbers, dtype=np.int64), np.array(ignore, dtype=bool)
    )


def _area(box: np.ndarray) -> float:
    return float(math.prod((box[2:] - box[:2]).tolist()))


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of a PNG or JPEG file, from its header.

    Raises:
        DataError: The file is missing, damaged, or has more than 8 bits per channel.
    """
    probe = probe_image(path)
    if probe.bit_depth > 8:
        raise DataError(
            f"image file {path} has {probe.bit_depth} bits per channel, whose range COCO and "
            "Pascal VOC do not tell: convert it to 8 bits with the window of your choice"
        )
    return probe.height, probe.width


def read_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Decode an 8-bit picture.

    An EXIF rotation is not applied: annotation tools count pixels as they are stored.

    Args:
        path: PNG or JPEG file, grey or colour.
        size: (height, width) that it must have.

    Returns:
        float32 [H, W, 3] RGB in [0, 1].

    Raises:
        DataError: The file is missing, damaged or of another size.
    """
    # Bytes first: cv2.imread tells a missing file from a damaged one by a printed line only.
    try:
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise DataError(f"cannot read image file {path}: {error.strerror or error}") from error
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(content, flags) if content.size else None
    if image is None:
        raise DataError(f"image file {path} is damaged: its pixels cannot be decoded")
    if image.shape[:2] != size:
        raise DataError(
            f"image file {path} has {image.shape[1]}x{image.shape[0]} pixels now and had "
            f"{size[1]}x{size[0]} when the data set was opened"
        )
    return np.multiply(image, np.float32(1 / 255), dtype=np.float32)


class PictureImages(Images):
    """Pictures in files of their own below a folder."""

    def __init__(
        self,
        root: Path,
        infos: Mapping[str, ImageInfo],
        splits: Mapping[str, tuple[str, ...]],
    ) -> None:
        """Hold what was found below `root`, which every `file_name` starts from."""
        super().__init__(infos, splits)
        self.root = root

    def read(self, image_id: str) -> np.ndarray:
        """Decode an image: float32 [H, W, 3] RGB in [0, 1], ORIGINAL pixels."""
        info = self.infos[image_id]
        return read_picture(self.root / info.file_name, info.orig_size)


def given_splits(
    infos: Mapping[str, ImageInfo], lists: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Splits from lists of image ids; ids that are not in `infos` (skipped files) are left out.

    Raises:
        DataError: An image or a group (patient) is on two lists, or a list has no image left.
    """
    splits = {
        name: tuple(sorted(image_id for image_id in set(lists[name]) if image_id in infos))
        for name in SPLIT_NAMES
    }
    side: dict[str, str] = {}
    for name, ids in splits.items():
        if not ids:
            raise DataError(f"the list of split '{name}' has no image")
        for image_id in ids:
            group = infos[image_id].group_id
            if side.setdefault(group, name) != name:
                what = "image" if group == image_id else "group (patient)"
                raise DataError(
                    f"{what} '{group}' is in split '{side[group]}' and in '{name}' (image "
                    f"'{image_id}'): each must be in one only"
                )
    log_split(infos, splits)
    return splits
