"""What a data set is: images for everyone, and the labels of all, some or none of them.

Who is given Images cannot see a label: the pool, its loaders and their workers. Labels go to the
oracle, which reveals those of training images, and to evaluation, which has those of val and test.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Self

import numpy as np

from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.utils.errors import ConfigError, DataError


@dataclass(eq=False, repr=False)
class Images(ABC):
    """Images and what is known of them without a label; a subclass implements `read`."""

    infos: Mapping[str, ImageInfo]  # by image id, and sorted by it
    # "train" (the pool), "val" and "test" to disjoint tuples of image ids; groups do not cross.
    splits: Mapping[str, tuple[str, ...]]
    note: str | None = None  # what every figure and table made from the data must say
    # Whether the split was drawn among labelled images, so that more labels give another one: a run
    # keeps the one that it began with.
    split_from_labels = False

    def __post_init__(self) -> None:
        self.infos = dict(sorted(self.infos.items()))

    @abstractmethod
    def read(self, image_id: str) -> np.ndarray:
        """Decode an image: float32 [H, W, 3] in [0, 1], ORIGINAL pixels.

        DataError where the file is missing or damaged.
        """

    def picture(self, image_id: str) -> np.ndarray:
        """The image as a person is shown it, of the same size and form as `read` gives."""
        return self.read(image_id)

    def with_splits(self, splits: Mapping[str, tuple[str, ...]]) -> Self:
        """The same images, split otherwise."""
        other = copy(self)
        other.splits = splits
        return other

    def fingerprint(self) -> str:
        """Hex digest of ids, patients, sizes and split: two runs on the same images agree on it."""
        digest = hashlib.sha256()
        of_split = {image_id: name for name, ids in self.splits.items() for image_id in ids}
        for image_id, info in self.infos.items():
            words = (image_id, info.group_id, info.orig_size, of_split.get(image_id))
            digest.update(repr(words).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Labels:
    """Labels of some images; an image without an entry has none (yet)."""

    class_names: tuple[str, ...]  # without background; label i is `class_names[i - 1]`
    annotations: Mapping[str, Annotation]  # by image id
    notes: tuple[str, ...] = ()  # what was changed while they were read, a sentence each

    def of(self, image_ids: Iterable[str]) -> dict[str, Annotation]:
        """The labels of these images, in their order; DataError where one has none."""
        wanted = tuple(image_ids)
        missing = [image_id for image_id in wanted if image_id not in self.annotations]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(wanted)} images have no label and need one: "
                f"{', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
            )
        return {image_id: self.annotations[image_id] for image_id in wanted}

    def fingerprint(self) -> str:
        """Hex digest of classes and labels, in whatever order they came."""
        digest = hashlib.sha256("\x1f".join(self.class_names).encode())
        for image_id in sorted(self.annotations):
            label = self.annotations[image_id]
            digest.update(repr((image_id, len(label.labels))).encode())
            for array in (label.boxes, label.labels, label.ignore):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class BaseDataset:
    """Images with labels of all, some or none of them.

    A subclass takes the arguments of the config's `dataset.args`, reads its files, and calls this
    constructor with what they hold. It raises ConfigError for an argument that is wrong or leaves a
    split empty, and DataError for data that is missing, or bad while "on_bad_sample" is "error".
    """

    def __init__(self, images: Images, labels: Labels) -> None:
        self.images, self.labels = images, labels

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ConfigError unless the model's classes (with background) fit the data."""
        names = self.labels.class_names
        if not names:
            raise ConfigError(
                "the data names no class and has no label that tells one: set dataset.args.classes"
            )
        if num_classes != len(names) + 1:
            raise ConfigError(
                f"arch.args.num_classes is {num_classes}, but the data has {len(names)} "
                f"class(es) ({', '.join(names)}) and background: set it to {len(names) + 1}"
            )
