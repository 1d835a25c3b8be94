"""Faster R-CNN by composition over torchvision.

Shape shorthand: B images of a batch, N detections and P best proposals of an image, C classes
with background, D length of the embedding, F length of the RoI features.

Everything that decides a box (logits, deltas, anchors, decoding, NMS, matching, losses) is fp32;
low precision is an island around the backbone, the RPN's wide convolution, RoI pooling and the
box head.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops.poolers import initLevelMapper

from med_sslal.base.base_model import ABILITIES, BaseModel
from med_sslal.base.types import Detections, Frame, ModelOutput, Target
from med_sslal.model.arguments import problems_of
from med_sslal.model.backbone import BACKBONES, BackboneSpec, build_backbone
from med_sslal.model.box_head import BoxHead
from med_sslal.model.norm import NormName, norm_layer
from med_sslal.model.roi_heads import HeadPass, RoIHeads, RoIResult
from med_sslal.model.roi_pool import RoIPool
from med_sslal.model.rpn import Float32RPNHead, RegionProposals
from med_sslal.model.targets import read_targets
from med_sslal.model.transform import (
    DetectionTransform,
    NetworkBatch,
    resize_targets,
    to_original,
    valid_mean,
)
from med_sslal.model.weights import download_imagenet, load_weights, read_weights
from med_sslal.utils.errors import ConfigError, DataError, UserError
from med_sslal.utils.util import stable_hash

_FPN_ANCHORS = ((16,), (32,), (64,), (128,), (256,))
_SINGLE_LEVEL_ANCHORS = ((16, 32, 64, 128, 256),)
_DEFAULT_TRAINABLE = 3


class FasterRCNN(BaseModel):
    """Faster R-CNN, two stages, with or without a feature pyramid.

    Attributes:
        backbones: The registry that `backbone_name` is looked up in; a subclass may extend it.
        num_classes: Classes C with background.
    """

    backbones: ClassVar[Mapping[str, BackboneSpec]] = BACKBONES

    def __init__(
        self,
        *,
        num_classes: int,
        backbone_name: str = "resnet50",
        fpn: bool = True,
        fpn_channels: int = 256,
        pretrained: bool | str = False,
        load_pretrained: bool = True,
        norm: NormName | None = None,
        norm_eps: float | None = None,
        trainable_layers: int | None = None,
        returned_layers: tuple[int, ...] | None = None,
        anchor_sizes: tuple[tuple[int, ...], ...] | None = None,
        aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
        rpn_pre_nms_top_n_train: int = 2000,
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_train: int = 2000,
        rpn_post_nms_top_n_test: int = 1000,
        box_batch_size_per_image: int = 512,
        box_head_size: int = 1024,
        box_head_dropout: float = 0.0,
        box_score_thresh: float = 0.01,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        top_proposals: int = 20,
        min_size: int | None = None,
        max_size: int | None = None,
        image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        image_std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        roi_features: bool = False,
    ) -> None:
        """Build the detector.

        Args:
            num_classes: Number of classes with background.
            backbone_name: resnet18, resnet34, resnet50, resnet101 or mobilenet_v3_large.
            fpn: Use a feature pyramid; without it there is one level at stride 32.
            fpn_channels: Channels of every level, and of the RPN and the RoIs that are pooled
                from them; also without pyramid. Weights of another width do not fit.
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
                64, 128, 256.
            aspect_ratios: Height / width of the anchors.
            rpn_pre_nms_top_n_train: Proposals per level before NMS in training.
            rpn_pre_nms_top_n_test: The same at test.
            rpn_post_nms_top_n_train: Proposals per image after NMS in training.
            rpn_post_nms_top_n_test: The same at test.
            box_batch_size_per_image: Proposals per image that the box head is trained on.
            box_head_size: Width of the box head, and length of the RoI features.
            box_head_dropout: Share of the box head's hidden values that training drops, and so do
                the passes of ensemble_disagreement; 0 = none.
            box_score_thresh: Detections need a higher score.
            box_nms_thresh: IoU above which the lower score of the same class is dropped.
            box_detections_per_img: Most detections of an image.
            top_proposals: Best proposals that are handed out with each image.
            min_size: Shorter side to resize to inside the model; null keeps the size of the run.
            max_size: Bound of the longer side, with min_size.
            image_mean: Mean of each channel in [0, 1].
            image_std: Standard deviation of each channel.
            roi_features: Hand out the box head's features of every detection.

        Raises:
            ConfigError: The arguments do not go together (see `check_args`).
            UserError: ImageNet weights cannot be downloaded.
            CheckpointError: The weights file does not fit.
        """
        given = locals()
        problems = self.check_args({name: given[name] for name in _defaults()})
        if problems:
            raise ConfigError("; ".join(f"arch.args.{name}: {text}" for name, text in problems))
        super().__init__()
        spec = self.backbones[backbone_name]
        self.num_classes = num_classes
        self._n_top, self._gives_roi_features = top_proposals, roi_features
        default_norm: NormName = "frozen" if pretrained else "batch"
        n_stages = len(spec.stages)
        if trainable_layers is None:
            trainable_layers = _DEFAULT_TRAINABLE if pretrained else n_stages
        self.backbone = build_backbone(
            spec,
            norm_layer=norm_layer(
                norm or default_norm, spec.norm_eps if norm_eps is None else norm_eps
            ),
            fpn=fpn,
            returned_stages=returned_layers or spec.returned_stages,
            trainable_layers=trainable_layers,
            channels=fpn_channels,
        )
        strides = self.backbone.strides
        self.transform = DetectionTransform(
            min_size, max_size, image_mean, image_std, max(32, strides[-1])
        )
        sizes = anchor_sizes or (_FPN_ANCHORS if fpn else _SINGLE_LEVEL_ANCHORS)
        anchors = AnchorGenerator(tuple(sizes), (tuple(aspect_ratios),) * len(sizes))
        self.rpn = RegionProposals(
            anchors,
            Float32RPNHead(self.backbone.out_channels, anchors.num_anchors_per_location()[0]),
            {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
        )
        pool = _roi_pool(strides)
        self.roi_heads = RoIHeads(
            pool,
            BoxHead(
                self.backbone.out_channels * math.prod(pool.output_size),
                box_head_size,
                box_head_dropout,
            ),
            FastRCNNPredictor(box_head_size, num_classes),
            batch_size_per_image=box_batch_size_per_image,
            score_thresh=box_score_thresh,
            nms_thresh=box_nms_thresh,
            detections_per_img=box_detections_per_img,
        )
        if load_pretrained and pretrained:
            self._load_pretrained(spec, backbone_name, pretrained)

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Find what is wrong with arguments of the right types, before anything is built.

        Args:
            args: Constructor arguments by name; what is left out has its default.

        Returns:
            Pairs of an argument's name and a sentence about it; empty if all is well.
        """
        return problems_of({**_defaults(), **args}, cls.backbones)

    @classmethod
    def abilities(cls, args: Mapping[str, Any]) -> frozenset[str]:
        """All of ABILITIES, `dropout` only with `box_head_dropout` above 0."""
        missing = () if args.get("box_head_dropout", 0.0) else ("dropout",)
        return frozenset(ABILITIES.keys() - missing)

    def compilable(self) -> tuple[nn.Module, ...]:
        """The backbone and the head of the RPN; the rest depends on how many boxes there are."""
        return self.backbone, self.rpn.head

    def _load_pretrained(self, spec: BackboneSpec, name: str, pretrained: bool | str) -> None:
        """Load ImageNet weights or a weights file."""
        if isinstance(pretrained, str):
            load_weights(self, spec, read_weights(Path(pretrained)), pretrained)
        else:
            load_weights(self, spec, download_imagenet(name, spec), f"ImageNet's {name}")

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        """Run the detector (see BaseModel.forward).

        Losses are normalised per image: their mean over the batch is torchvision's loss where
        every image has the full number of samples. Samplers draw from the global generator as
        torchvision's do, or for a frame with a seed from one of its own. In eval mode losses are
        computed on the test-time proposals of the same pass, with samplers seeded by the image id
        (one seed for all images without frames); the global random state and the norms' statistics
        stay untouched.

        Raises:
            DataError: Images or targets are not what they must be.
            UserError: In eval mode, the model's outputs are not finite, or passes with dropout
                are asked for where there is none.
        """
        if self.training and targets is None:
            raise DataError("training needs a target for every image")
        names = [frame.info.image_id for frame in frames] if frames is not None else None
        truths = None
        generators: list[torch.Generator | None] = [None] * len(images)
        device_type = images[0].device.type
        with torch.autocast(device_type, enabled=False):
            # A training view may turn and crop: what its frame maps outside is not blank.
            batch = self.transform(images, None if self.training else frames)
            if targets is not None:
                resized = resize_targets(targets, batch.given_sizes, batch.resized_sizes)
                truths = read_targets(resized, self.num_classes, names)
                generators = self._generators(len(truths), frames, images[0].device)
            dtype = self.autocast_dtype
            with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
                features, c5 = self.backbone(
                    batch.images.tensors.contiguous(memory_format=self.memory_format)
                )
            proposals, objectness, rpn_losses, rpn_logits = self.rpn(
                batch.images, features, truths, generators, dtype
            )
            results, roi_losses, class_logits, class_quality = self.roi_heads(
                features, proposals, batch.images.image_sizes, truths, generators, dtype
            )
            losses = {**roi_losses, **rpn_losses}
            if self.training:
                return ModelOutput(losses, [], class_quality)
            _check_finite(rpn_logits, class_logits, names)
            detections = self._finish(batch, frames, results, proposals, objectness, c5)
            passes = tuple(
                _seen_again(detections, found, batch, frames)
                for found in self._sample(features, results, batch, names)
            )
        return ModelOutput(losses, detections, head_passes=passes)

    def _generators(
        self, n: int, frames: Sequence[Frame] | None, device: torch.device
    ) -> list[torch.Generator | None]:
        """The samplers' generator for each image; None is the global one."""
        seeds: list[int | None] = [None] * n
        if not self.training:
            names = [frame.info.image_id for frame in frames] if frames is not None else [""] * n
            seeds = [stable_hash("val_loss", name) for name in names]
        elif frames is not None:
            seeds = [frame.seed for frame in frames]
        return [
            None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds
        ]

    def _sample(
        self,
        features: dict[str, Tensor],
        results: Sequence[RoIResult],
        batch: NetworkBatch,
        names: Sequence[str] | None,
    ) -> list[list[HeadPass]]:
        """The passes with dropout that are asked for."""
        numbers = self.extras.head_passes
        if not numbers:
            return []
        if not self.roi_heads.box_head.dropout:
            raise UserError(
                "passes with dropout need arch.args.box_head_dropout above 0, found 0.0: train a "
                "detector with it"
            )
        return self.roi_heads.sample(
            features,
            results,
            batch.images.image_sizes,
            names or [""] * len(results),
            numbers,
            self.autocast_dtype,
        )

    def _finish(
        self,
        batch: NetworkBatch,
        frames: Sequence[Frame] | None,
        results: Sequence[RoIResult],
        proposals: Sequence[Tensor],
        objectness: Sequence[Tensor],
        c5: Tensor,
    ) -> list[Detections]:
        """Bring every box to ORIGINAL pixels and add what describes the whole image."""
        wanted = self._gives_roi_features or self.extras.roi_features
        embeddings = valid_mean(c5, batch)
        detections = []
        for i, result in enumerate(results):
            top = proposals[i][: self._n_top]
            n, n_top = len(result.boxes), len(top)
            boxes, sources, top = to_original(
                torch.cat([result.boxes, result.proposals, top]),
                batch.resized_sizes[i],
                batch.given_sizes[i],
                None if frames is None else frames[i],
            ).split([n, n, n_top])
            detections.append(
                Detections(
                    boxes=boxes,
                    labels=result.labels,
                    scores=result.scores,
                    class_probs=result.class_probs,
                    proposals=sources,
                    embedding=embeddings[i],
                    top_proposals=top,
                    top_objectness=objectness[i][:n_top],
                    roi_features=result.roi_features if wanted else None,
                )
            )
        return detections


def _seen_again(
    detections: Sequence[Detections],
    found: Sequence[HeadPass],
    batch: NetworkBatch,
    frames: Sequence[Frame] | None,
) -> list[Detections]:
    """The detections with the boxes, in ORIGINAL pixels, and scores of another pass."""
    return [
        replace(
            item,
            boxes=to_original(
                seen.boxes,
                batch.resized_sizes[i],
                batch.given_sizes[i],
                None if frames is None else frames[i],
            ),
            scores=seen.scores,
            class_probs=seen.class_probs,
            roi_features=None,
        )
        for i, (item, seen) in enumerate(zip(detections, found, strict=True))
    ]


def _defaults() -> dict[str, Any]:
    """The constructor's arguments with their defaults; required ones are None."""
    parameters = list(inspect.signature(FasterRCNN.__init__).parameters.values())[1:]
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def _roi_pool(strides: Sequence[int]) -> RoIPool:
    """RoI pooling whose scales are fixed here.

    The stock layer derives them from the first batch it sees, and keeps them.
    """
    names = [str(level) for level in range(len(strides))]
    pool = RoIPool(names, output_size=7, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool


def _check_finite(rpn_logits: Tensor, class_logits: Tensor, names: Sequence[str] | None) -> None:
    """Raise UserError for NaN or infinite outputs, which would read as "no detection"."""
    if not torch.isfinite(rpn_logits.sum() + class_logits.sum()):
        where = f" on images {', '.join(names)}" if names else ""
        raise UserError(
            f"the model's scores are not finite{where}: its weights are damaged or the training "
            "diverged; use another checkpoint or a lower learning rate"
        )
