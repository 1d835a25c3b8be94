"""What a dataset is: infos and pixels for everyone, annotations for evaluation and the oracle."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import copy
from typing import Protocol

import numpy as np

from med_sslal.base.types import Annotation, ImageInfo
from med_sslal.utils.errors import ConfigError


class Images(Protocol):
    """The label-free side of a dataset: all that a view of the unlabelled pool is given."""

    @property
    def infos(self) -> Mapping[str, ImageInfo]:
        """Image id to what is known without a label."""
        ...

    def read(self, image_id: str) -> np.ndarray:
        """Decode an image: float32 [H, W, 3] in [0, 1], ORIGINAL pixels."""
        ...


class BaseDataset(ABC):
    """A set of images with labels, split into train (the pool), val and test.

    A subclass fills the four attributes in its constructor and implements `read`; everything else
    (augmentation, batching, the pool, evaluation) works from these.

    Attributes:
        class_names: Names without background; label i is `class_names[i - 1]`.
        infos: Image id to ImageInfo, sorted by id.
        annotations: Image id to Annotation, the same keys.
        splits: "train", "val" and "test" to disjoint tuples of image ids; groups do not cross.
        note: What every figure and table made from the data must say, or None.
    """

    class_names: tuple[str, ...]
    infos: Mapping[str, ImageInfo]
    annotations: Mapping[str, Annotation]
    splits: Mapping[str, tuple[str, ...]]
    note: str | None = None

    @abstractmethod
    def read(self, image_id: str) -> np.ndarray:
        """Decode an image.

        Returns:
            float32 [H, W, 3] in [0, 1], ORIGINAL pixels.

        Raises:
            DataError: The file is missing or damaged.
        """

    def picture(self, image_id: str) -> np.ndarray:
        """The image as a person is shown it, of the same size and form as `read` gives."""
        return self.read(image_id)

    def without_labels(self) -> "BaseDataset":
        """A view of the same images that holds no label: what loaders and workers are given."""
        clone = copy(self)
        clone.annotations = {}
        return clone

    def check_num_classes(self, num_classes: int) -> None:
        """Raise ConfigError unless the model's classes (with background) fit the data."""
        expected = len(self.class_names) + 1
        if num_classes != expected:
            raise ConfigError(
                f"arch.args.num_classes is {num_classes}, but the data has {expected - 1} "
                f"class(es) ({', '.join(self.class_names)}) and background: set it to {expected}"
            )

    def fingerprint(self) -> str:
        """Hex digest of ids, sizes, labels and split: two runs on the same data agree on it."""
        digest = hashlib.sha256("\x1f".join(self.class_names).encode())
        of_split = {image_id: name for name, ids in self.splits.items() for image_id in ids}
        for image_id in sorted(self.infos):
            info, label = self.infos[image_id], self.annotations[image_id]
            words = (image_id, info.group_id, info.orig_size, of_split.get(image_id))
            digest.update(repr(words).encode())
            for array in (label.boxes, label.labels, label.ignore):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
