"""A pool of any size without pictures or convolutions: recorded detections, played back by image.

A few hundred made-up images are recorded. What the detector "sees" on an image of the pool is one
of them, changed by what a hash of the image's id says: boxes shifted, probabilities sharpened or
softened, the embedding mixed with another one. The labels of the pool are made alike, so that
sure detections are mostly right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import detections
from med_sslal.al.record import OPTIONAL_COLUMNS
from med_sslal.base.base_dataset import BaseDataset, Images, Labels
from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Annotation, Detections, Frame, ImageInfo, ModelOutput, Target
from med_sslal.utils.util import stable_hash

N_RECORDED, N_EVALUATED, SLICES = 300, 500, 20
SIZE, SHIFT = 576, 64
# Recorded detections from this score on lie on an object.
OBJECT_SCORE = 0.8


@dataclass(frozen=True)
class Change:
    """How an image of the pool differs from the recorded ones.

    Attributes:
        number: The recorded image.
        other: One whose embedding is mixed in.
        share: Its share of the embedding, and what changes the probabilities: in [0, 1).
        shift: float32 [4], added to every box.
    """

    number: int
    other: int
    share: float
    shift: Tensor

    @classmethod
    def of(cls, image_id: str) -> "Change":
        """The change of an image, whoever asks."""
        left = stable_hash("replay", image_id)
        parts = []
        for size in (N_RECORDED, N_RECORDED, 2**16, SHIFT, SHIFT):
            left, part = divmod(left, size)
            parts.append(part)
        number, other, share, x, y = parts
        return cls(number, other, share / 2**16, torch.tensor([x, y, x, y], dtype=torch.float32))


def recording(n_boxes: int, n_classes: int) -> list[Detections]:
    """The recorded images: about `n_boxes` detections each, best first, and some without any."""
    generator = np.random.default_rng(0)
    images = []
    for number in range(N_RECORDED):
        n = int(generator.poisson(n_boxes)) if number % 20 else 0
        found = detections(generator, n, n_classes)
        images.append(_in_order(found, found.scores))
    return images


def _in_order(found: Detections, scores: Tensor, **changes: Tensor) -> Detections:
    """Detections with other columns, best score first."""
    found = replace(found, scores=scores, **changes)
    order = scores.argsort(descending=True, stable=True)
    names = ("boxes", "labels", "scores", "class_probs", "proposals", *OPTIONAL_COLUMNS)
    columns = {name: getattr(found, name) for name in names}
    return replace(
        found, **{name: column[order] for name, column in columns.items() if column is not None}
    )


class ReplayDetector(BaseModel):
    """Plays recorded detections back: what it finds depends on the image's id alone."""

    def __init__(self, num_classes: int, *, detections: int = 20) -> None:
        """Record.

        Args:
            num_classes: Classes with background.
            detections: Detections of an image, about.
        """
        super().__init__()
        self.num_classes = num_classes
        self._images = recording(detections, num_classes - 1)

    @classmethod
    def abilities(cls, args: Mapping[str, Any]) -> frozenset[str]:
        """All but further passes."""
        return frozenset(
            {"class_probs", "proposals", "objectness", "class_quality", *OPTIONAL_COLUMNS}
        )

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        """The recorded detections of the images that the frames name."""
        assert frames is not None
        return ModelOutput({}, [self._seen(frame.info.image_id) for frame in frames])

    def _seen(self, image_id: str) -> Detections:
        change = Change.of(image_id)
        found, other = self._images[change.number], self._images[change.other]
        probs = found.class_probs ** (0.75 + change.share / 2)
        probs = probs / probs.sum(1, keepdim=True)
        # A power changes no order inside a row: the label stays the best class.
        scores = probs.gather(1, found.labels[:, None])[:, 0]
        unasked: Any = dict.fromkeys(OPTIONAL_COLUMNS.keys() - self.extras.columns)
        seen = _in_order(
            replace(found, **unasked),
            scores,
            class_probs=probs,
            boxes=found.boxes + change.shift,
            proposals=found.proposals + change.shift,
            embedding=torch.lerp(found.embedding, other.embedding, change.share),
            top_proposals=found.top_proposals + change.shift,
            top_objectness=found.top_objectness * (1 - change.share / 2),
        )
        if seen.refined_boxes is None:
            return seen
        return replace(seen, refined_boxes=seen.refined_boxes + change.shift)


class ReplayImages(BaseDataset):
    """Images that all look alike: `images` of them to train on, some more to evaluate on."""

    def __init__(self, images: int, *, classes: int = 3, detections: int = 20) -> None:
        """Make infos and labels.

        Args:
            images: Images of the pool, labelled or not; SLICES in a row are of one patient.
            classes: Classes without background.
            detections: Detections of an image, about.
        """
        names = tuple(f"class{number}" for number in range(1, classes + 1))
        ids = [f"image{number:07d}" for number in range(images + 2 * N_EVALUATED)]
        infos = {name: _info(name, number) for number, name in enumerate(ids)}
        label = partial(_label, recording(detections, classes))
        splits = {
            "train": tuple(ids[:images]),
            "val": tuple(ids[images : images + N_EVALUATED]),
            "test": tuple(ids[images + N_EVALUATED :]),
        }
        super().__init__(_Grey(infos, splits), Labels(names, {name: label(name) for name in ids}))


class _Grey(Images):
    """A small grey picture in place of each file."""

    def read(self, image_id: str) -> np.ndarray:
        """float32 [16, 16, 3]."""
        return np.full((16, 16, 3), 0.5, dtype=np.float32)


def _info(image_id: str, number: int) -> ImageInfo:
    """The number-th image, a slice of a patient."""
    patient, place = divmod(number, SLICES)
    group = f"patient{patient:06d}"
    return ImageInfo(image_id, group, f"{image_id}.png", (SIZE, SIZE), None, group, place)


def _label(images: Sequence[Detections], image_id: str) -> Annotation:
    """The objects of an image."""
    change = Change.of(image_id)
    found = images[change.number]
    rows = found.scores >= OBJECT_SCORE
    boxes = found.boxes[rows] + change.shift
    return Annotation(boxes.numpy(), found.labels[rows].numpy(), np.zeros(len(boxes), dtype=bool))
