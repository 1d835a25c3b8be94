"""What every family of detectors shares: a batch before its heads, and what they found after it.

Shape shorthand: B images of a batch, N detections and P best proposals of an image, C classes
with background, D length of the embedding, F length of the RoI features.

Everything that decides a box (logits, deltas, anchors, decoding, NMS, matching, losses) is fp32;
low precision is an island around the backbone and the wide layers of the heads.
"""

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Gt, MinLen
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Detections, Frame, ModelOutput, Target
from med_sslal.config.schema import Share
from med_sslal.model.arguments import problems_of
from med_sslal.model.backbone import BACKBONES, Backbone, BackboneSpec, Features
from med_sslal.model.norm import NormName, norm_layer
from med_sslal.model.targets import Truth, read_targets
from med_sslal.model.transform import DetectionTransform, to_original, valid_mean
from med_sslal.model.weights import load_pretrained_weights
from med_sslal.utils.errors import ConfigError, DataError, UserError
from med_sslal.utils.util import stable_hash

Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
Sides = Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
Deviation = tuple[Positive, Positive, Positive]


@dataclass(frozen=True)
class Found:
    """The detections of one image in the network's frame, best score first."""

    boxes: Tensor  # float32 [N, 4].
    labels: Tensor  # int64 [N].
    scores: Tensor  # float32 [N].
    class_probs: Tensor  # float32 [N, C].
    proposals: Tensor | None = None  # float32 [N, 4].
    roi_features: Tensor | None = None  # float32 [N, F].
    refined_boxes: Tensor | None = None  # float32 [N, 4], as in Detections.


@dataclass(frozen=True)
class Seen:
    """A batch as the heads get it."""

    images: ImageList  # The padded batch and the valid size of each image.
    features: Features  # Level name to [B, channels, h, w].
    c5: Tensor  # [B, D, h, w], the last stage of the backbone.
    truths: list[Truth] | None  # B labels; losses are computed where they are given.
    frames: Sequence[Frame] | None  # B frames, where there are any.
    dtype: torch.dtype | None  # Low precision of the wide layers, None for fp32.

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
    """A detector made from the arguments of a config: transform and backbone, and a family's heads.

    A subclass adds its heads in its constructor, which ends with `load_pretrained`.

    Args:
        num_classes: Number of classes with background.
        backbone_name: resnet18, resnet34, resnet50, resnet101, mobilenet_v2 or
            mobilenet_v3_large.
        fpn: Use a feature pyramid; without it there is one level at stride 32.
        fpn_channels: Channels of every level, and of the heads that read it; also without
            pyramid. Weights of another width do not fit.
        pretrained: true downloads ImageNet weights of the backbone; a path loads a weights
            file (ImageNet backbone, torchvision detector or a checkpoint of this program).
        load_pretrained: false builds the architecture that `pretrained` implies without
            reading the weights, for a checkpoint that is loaded next.
        norm: Norm of the backbone: frozen (default with pretrained weights), batch (default
            without; wants 8 images a device) or group.
        norm_eps: eps of frozen and batch norm; null is that of the ImageNet weights
            (torchvision's COCO weights were trained with 0.0 for resnet50).
        trainable_layers: Number of backbone stages, from the last, that learn; null is 3 with
            pretrained weights and all without.
        returned_layers: Stages that feed the pyramid, finest first; null takes strides 4 to
            32 (torchvision's MobileNet detector takes [4, 5]).
        anchor_sizes: Anchor sides in pixels, one list per level, finest first; null is 16, 32,
            64, 128, 256 (RetinaNet: three to an octave from there on).
        aspect_ratios: Height / width of the anchors.
        box_score_thresh: Detections need a higher score.
        box_nms_thresh: IoU above which the lower score of the same class is dropped.
        box_detections_per_img: Most detections of an image.
        image_mean: Mean of each channel in [0, 1].
        image_std: Standard deviation of each channel.

    Attributes:
        limits: Least score, IoU of the NMS and number of detections, as the arguments have them.
        backbones: The registry that `backbone_name` is looked up in; a subclass may extend it.
        retired: Arguments of older versions with the value that asked for nothing.
        pyramid_anchors: Sides by level of the pyramid, unless `anchor_sizes` says otherwise.

    Raises:
        ConfigError: The arguments do not go together (see `check_args`).
        UserError: ImageNet weights cannot be downloaded.
        CheckpointError: The weights file does not fit.
    """

    backbones: ClassVar[Mapping[str, BackboneSpec]] = BACKBONES
    retired: ClassVar[Mapping[str, Any]] = dict(min_size=None, max_size=None, roi_features=False)
    pyramid_anchors: ClassVar[Sequence[Sequence[int]]]

    def __init__(
        self,
        *,
        num_classes: Annotated[int, Ge(2)],
        backbone_name: str = "resnet50",
        fpn: bool = True,
        fpn_channels: Count = 256,
        pretrained: bool | str = False,
        load_pretrained: bool = True,
        norm: NormName | None = None,
        norm_eps: Share | None = None,
        trainable_layers: Annotated[int, Ge(0)] | None = None,
        returned_layers: Annotated[tuple[Count, ...], MinLen(1)] | None = None,
        anchor_sizes: Annotated[tuple[Sides, ...], MinLen(1)] | None = None,
        aspect_ratios: Annotated[tuple[Positive, ...], MinLen(1)] = (0.5, 1.0, 2.0),
        box_score_thresh: Share = 0.01,
        box_nms_thresh: Share = 0.5,
        box_detections_per_img: Count = 100,
        image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        image_std: Deviation = (0.229, 0.224, 0.225),
    ) -> None:
        problems = self.check_args(locals())
        if problems:
            raise ConfigError("; ".join(f"arch.args.{name}: {text}" for name, text in problems))
        super().__init__()
        spec = self.backbones[backbone_name]
        if trainable_layers is None:
            trainable_layers = 3 if pretrained else len(spec.stages)
        backbone = Backbone(
            spec,
            norm_layer=norm_layer(
                norm or ("frozen" if pretrained else "batch"),
                spec.norm_eps if norm_eps is None else norm_eps,
            ),
            fpn=fpn,
            returned_stages=returned_layers or spec.returned_stages,
            trainable_layers=trainable_layers,
            channels=fpn_channels,
        )
        self.num_classes = num_classes
        self.transform = DetectionTransform(image_mean, image_std, max(32, backbone.strides[-1]))
        self.backbone = backbone
        levels = self.pyramid_anchors
        if not fpn:
            levels = [[side for level in levels for side in level]]
        sizes = tuple(tuple(level) for level in anchor_sizes or levels)
        self.anchor_generator = AnchorGenerator(sizes, (tuple(aspect_ratios),) * len(sizes))
        self.limits = (box_score_thresh, box_nms_thresh, box_detections_per_img)
        self._weights = (spec, backbone_name, pretrained if load_pretrained else False)

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Find arguments, by name, of the right types and ranges that do not go together.

        Returns:
            Pairs of an argument's name and a sentence about it; empty if all is well.
        """
        parameters = inspect.signature(Detector).parameters.values()
        defaults = {one.name: one.default for one in parameters}
        return list(problems_of({**defaults, **args}, cls.backbones))

    def load_pretrained(self) -> None:
        """Load what `pretrained` names into the finished detector."""
        spec, name, pretrained = self._weights
        if pretrained:
            load_pretrained_weights(self, spec, name, pretrained)

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
        with torch.autocast(images[0].device.type, enabled=False):
            return self.look(self.see(images, targets, frames))

    def see(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> Seen:
        """Run the backbone alone: what `forward`, with the same arguments, gives to `look`."""
        device_type, dtype = images[0].device.type, self.autocast_dtype
        # A training view may turn and crop: what its frame maps outside is not blank.
        batch = self.transform(images, None if self.training else frames)
        truths = None
        if targets is not None:
            names = None if frames is None else [frame.info.image_id for frame in frames]
            truths = read_targets(targets, self.num_classes, names)
        with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
            features, c5 = self.backbone(batch.tensors.contiguous(memory_format=self.memory_format))
        return Seen(batch, features, c5, truths, frames, dtype)

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
        self, seen: Seen, found: Sequence[Found], top_proposals: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Detections]:
        """Bring every box to ORIGINAL pixels and add what describes the whole image.

        `top_proposals` are B images' best proposals float32 [P, 4] with their objectness [P].
        """
        detections = []
        embeddings = valid_mean(seen.c5, seen.images)
        for number, (item, (top, objectness)) in enumerate(zip(found, top_proposals, strict=True)):
            own = dict(vars(item))
            for name in ("boxes", "proposals", "refined_boxes"):
                if own[name] is not None:
                    own[name] = seen.to_original(own[name], number)
            if own["proposals"] is None:
                own["proposals"] = torch.zeros_like(item.boxes)
            if "roi_features" not in self.extras.columns:
                own["roi_features"] = None
            best = {"top_proposals": seen.to_original(top, number), "top_objectness": objectness}
            detections.append(Detections(**own, **best, embedding=embeddings[number]))
        return detections


def check_finite(seen: Seen, *outputs: Tensor) -> None:
    """Raise UserError for NaN or infinite outputs, which would read as "no detection"."""
    if not torch.isfinite(torch.stack([part.sum() for part in outputs]).sum()):
        where = f" on images {', '.join(seen.image_ids)}" if seen.frames else ""
        raise UserError(
            f"the model's outputs are not finite{where}: its weights are damaged or the training "
            "diverged; use another checkpoint or a lower learning rate"
        )
