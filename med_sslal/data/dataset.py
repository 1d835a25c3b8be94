"""The registry of datasets, and the views of a dataset that a loader reads.

A view is what decides whether a label can be seen: LabelledView holds the labels of its own images
and no others, UnlabelledView holds none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from med_sslal.base.base_data_loader import BadSample
from med_sslal.base.base_dataset import BaseDataset, Images
from med_sslal.base.types import Annotation, ImageInfo, Sample, UnlabelledSample
from med_sslal.data.coco import COCO
from med_sslal.data.deeplesion import DeepLesion
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.transforms import Transform
from med_sslal.data.voc import PascalVOC
from med_sslal.utils.errors import DataError, LabelAccessError

DATASETS: dict[str, type[BaseDataset]] = {
    "DeepLesion": DeepLesion,
    "COCO": COCO,
    "PascalVOC": PascalVOC,
    "ImageFolder": ImageFolder,
}


class _View(Dataset[Any]):
    """Images in the model's frame; keys are (position in `ids`, epoch)."""

    def __init__(self, images: Images, ids: Sequence[str], transform: Transform) -> None:
        self._images, self.ids, self.transform = images, tuple(ids), transform

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: tuple[int, int]) -> Sample | UnlabelledSample | BadSample:
        """Load a sample; a file that cannot be read gives a BadSample."""
        image_id, epoch = self.ids[key[0]], key[1]
        try:
            return self._sample(self._images.infos[image_id], self._images.read(image_id), epoch)
        except DataError as error:
            return BadSample(str(error), image_id)

    def _sample(self, info: ImageInfo, pixels: np.ndarray, epoch: int) -> Sample | UnlabelledSample:
        raise NotImplementedError


class LabelledView(_View):
    """Images with labels, as Samples."""

    def __init__(
        self,
        images: Images,
        labels: Mapping[str, Annotation],
        ids: Sequence[str],
        transform: Transform,
        pseudo_ids: frozenset[str] = frozenset(),
        pseudo_transform: Transform | None = None,
    ) -> None:
        """Hold `ids` in order, and the labels of no other image: no worker sees one of the pool.

        The labels of `pseudo_ids` are pseudo-labels, and `pseudo_transform` takes the place of
        `transform` there, unless it is None. LabelAccessError where one of `ids` has no label.
        """
        super().__init__(images, ids, transform)
        missing = [image_id for image_id in ids if image_id not in labels]
        if missing:
            raise LabelAccessError(
                f"{len(missing)} image(s) of a labelled view have no label: {missing[:5]}"
            )
        self.labels = {image_id: labels[image_id] for image_id in ids}
        self.pseudo_ids, self.pseudo_transform = pseudo_ids, pseudo_transform or transform

    def _sample(self, info: ImageInfo, pixels: np.ndarray, epoch: int) -> Sample:
        pseudo, label = info.image_id in self.pseudo_ids, self.labels[info.image_id]
        transform = self.pseudo_transform if pseudo else self.transform
        image, target, frame = transform(pixels, label, info, epoch)
        assert target is not None
        return Sample(image, target, frame, pseudo)


class UnlabelledView(_View):
    """Images of the unlabelled pool, as UnlabelledSamples."""

    def _sample(self, info: ImageInfo, pixels: np.ndarray, epoch: int) -> UnlabelledSample:
        image, _, frame = self.transform(pixels, None, info, epoch)
        return UnlabelledSample(image, frame)
