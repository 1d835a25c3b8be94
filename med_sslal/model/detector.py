"""What every family of detectors shares: a batch before its heads, and what they found after it.

Shape shorthand: B images of a batch, N detections and P best proposals of an image, C classes
with background, D length of the embedding, F length of the RoI features.

Everything that decides a box (logits, deltas, anchors, decoding, NMS, matching, losses) is fp32;
low precision is an island around the backbone and the wide layers of the heads.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Detections, Frame, ModelOutput, Target
from med_sslal.model.backbone import Backbone, Features
from med_sslal.model.targets import Truth, read_targets
from med_sslal.model.transform import DetectionTransform, to_original, valid_mean
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import stable_hash


@dataclass(frozen=True)
class Found:
    """The detections of one image in the network's frame, best score first.

    Attributes:
        boxes: float32 [N, 4].
        labels: int64 [N].
        scores: float32 [N].
        class_probs: float32 [N, C].
        proposals: float32 [N, 4]; None where there are none.
        roi_features: float32 [N, F]; None where there are none.
        refined_boxes: float32 [N, 4], as in Detections; None where there are none.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_probs: Tensor
    proposals: Tensor | None = None
    roi_features: Tensor | None = None
    refined_boxes: Tensor | None = None


@dataclass(frozen=True)
class Seen:
    """A batch as the heads get it.

    Attributes:
        images: The padded batch and the valid size of each image.
        features: Level name to [B, channels, h, w].
        c5: [B, D, h, w], the last stage of the backbone.
        truths: B labels; losses are computed where they are given.
        frames: B frames, where there are any.
        dtype: Low precision of the wide layers, None for fp32.
    """

    images: ImageList
    features: Features
    c5: Tensor
    truths: list[Truth] | None
    frames: Sequence[Frame] | None
    dtype: torch.dtype | None

    @property
    def image_ids(self) -> list[str]:
        """The images' ids, "" without frames."""
        if self.frames is None:
            return [""] * len(self.images.image_sizes)
        return [frame.info.image_id for frame in self.frames]

    def low_precision(self) -> torch.autocast:
        """Where the wide layers compute in `dtype`."""
        return torch.autocast(self.c5.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def to_original(self, boxes: Tensor, number: int) -> Tensor:
        """Boxes of image `number` in ORIGINAL pixels."""
        return to_original(boxes, None if self.frames is None else self.frames[number])


class Detector(BaseModel):
    """A detector of built parts: transform and backbone here, heads in the families."""

    def __init__(
        self,
        *,
        transform: DetectionTransform,
        backbone: Backbone,
        num_classes: int,
    ) -> None:
        """Put the parts together.

        Args:
            transform: Images to the network's batch.
            backbone: The batch to feature levels and C5.
            num_classes: Classes C with background.
        """
        super().__init__()
        self.num_classes = num_classes
        self.transform = transform
        self.backbone = backbone

    @abstractmethod
    def look(self, seen: Seen) -> ModelOutput:
        """Run the heads: losses where there are truths, and detections in eval mode."""

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        """Run the detector (see BaseModel.forward).

        Losses are normalised per image: their mean over the batch is torchvision's loss where
        every image has the full number of samples. In eval mode they come from the same pass as
        the detections; the global random state and the norms' statistics stay untouched.

        Raises:
            DataError: Images or targets are not what they must be.
            UserError: In eval mode, the model's outputs are not finite, or passes with dropout
                are asked for where there is none.
        """
        if self.training and targets is None:
            raise DataError("training needs a target for every image")
        device_type, dtype = images[0].device.type, self.autocast_dtype
        with torch.autocast(device_type, enabled=False):
            # A training view may turn and crop: what its frame maps outside is not blank.
            batch = self.transform(images, None if self.training else frames)
            truths = None
            if targets is not None:
                names = None if frames is None else [frame.info.image_id for frame in frames]
                truths = read_targets(targets, self.num_classes, names)
            with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
                features, c5 = self.backbone(
                    batch.tensors.contiguous(memory_format=self.memory_format)
                )
            return self.look(Seen(batch, features, c5, truths, frames, dtype))

    def generators(self, seen: Seen) -> list[torch.Generator | None]:
        """What samples each image's losses at random; None is the global generator.

        In training a frame with a seed has one of its own. In eval mode the image id seeds it (one
        seed for all images without frames).
        """
        seeds: list[int | None] = [None] * len(seen.image_ids)
        if not self.training:
            seeds = [stable_hash("val_loss", name) for name in seen.image_ids]
        elif seen.frames is not None:
            seeds = [frame.seed for frame in seen.frames]
        device = seen.c5.device
        return [
            None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds
        ]

    def finish(
        self,
        seen: Seen,
        found: Sequence[Found],
        top_proposals: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> list[Detections]:
        """Bring every box to ORIGINAL pixels and add what describes the whole image.

        `top_proposals` are B images' best proposals float32 [P, 4] with their objectness [P], where
        there are any.
        """
        detections = []
        embeddings = valid_mean(seen.c5, seen.images)
        for number, item in enumerate(found):
            top, objectness = item.boxes.new_zeros(0, 4), item.scores.new_zeros(0)
            if top_proposals is not None:
                top, objectness = top_proposals[number]
            sources, refined = item.proposals, item.refined_boxes
            detections.append(
                Detections(
                    boxes=seen.to_original(item.boxes, number),
                    labels=item.labels,
                    scores=item.scores,
                    class_probs=item.class_probs,
                    proposals=torch.zeros_like(item.boxes)
                    if sources is None
                    else seen.to_original(sources, number),
                    embedding=embeddings[number],
                    top_proposals=seen.to_original(top, number),
                    top_objectness=objectness,
                    roi_features=item.roi_features
                    if "roi_features" in self.extras.columns
                    else None,
                    refined_boxes=None if refined is None else seen.to_original(refined, number),
                )
            )
        return detections


def check_finite(seen: Seen, *logits: Tensor) -> None:
    """Raise UserError for NaN or infinite outputs, which would read as "no detection"."""
    if not torch.isfinite(torch.stack([part.sum() for part in logits]).sum()):
        where = f" on images {', '.join(seen.image_ids)}" if seen.frames else ""
        raise UserError(
            f"the model's scores are not finite{where}: its weights are damaged or the training "
            "diverged; use another checkpoint or a lower learning rate"
        )
