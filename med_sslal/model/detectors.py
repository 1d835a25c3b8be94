"""From the arguments of a config to detectors: the one place that turns them into parts."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Gt, Interval, Lt, MinLen
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops.poolers import initLevelMapper

from med_sslal.model.arguments import problems_of
from med_sslal.model.backbone import BACKBONES, Backbone, BackboneSpec, build_backbone
from med_sslal.model.detector import Detector
from med_sslal.model.norm import NormName, norm_layer
from med_sslal.model.rcnn import TwoStageDetector
from med_sslal.model.retina import DenseHead, OneStageDetector
from med_sslal.model.roi_heads import BoxHead, RoIHeads
from med_sslal.model.roi_pool import RoIPool
from med_sslal.model.rpn import Float32RPNHead, RegionProposals
from med_sslal.model.transform import DetectionTransform
from med_sslal.model.weights import load_pretrained_weights
from med_sslal.utils.errors import ConfigError

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Interval(ge=0, le=1)]
Positive = Annotated[float, Gt(0)]
Sides = Annotated[tuple[Annotated[int, Ge(1)], ...], MinLen(1)]
Deviation = tuple[Positive, Positive, Positive]


class FromConfig(Detector):
    """The arguments that every family takes; it stands before the family among the bases.

    Attributes:
        backbones: The registry that `backbone_name` is looked up in; a subclass may extend it.
        retired: Arguments of older versions with the value that asked for nothing.
        pyramid_anchors: Sides by level of the pyramid, unless `anchor_sizes` says otherwise.

    Args:
        *heads: One function of the family: from backbone, anchors, number of classes and what
            bounds the detections to the parts of its own.
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
        *heads: Callable[..., Mapping[str, Any]],
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
        """Build the detector."""
        problems = self.check_args(locals())
        if problems:
            raise ConfigError("; ".join(f"arch.args.{name}: {text}" for name, text in problems))
        spec = self.backbones[backbone_name]
        if trainable_layers is None:
            trainable_layers = 3 if pretrained else len(spec.stages)
        backbone = build_backbone(
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
        levels = self.pyramid_anchors
        if not fpn:
            levels = [[side for level in levels for side in level]]
        sizes = tuple(tuple(level) for level in anchor_sizes or levels)
        anchors = AnchorGenerator(sizes, (tuple(aspect_ratios),) * len(sizes))
        limits = {
            "score_thresh": box_score_thresh,
            "nms_thresh": box_nms_thresh,
            "detections_per_img": box_detections_per_img,
        }
        [own] = heads
        super().__init__(
            transform=DetectionTransform(image_mean, image_std, max(32, backbone.strides[-1])),
            backbone=backbone,
            num_classes=num_classes,
            **own(backbone, anchors, num_classes, limits),
        )
        if load_pretrained and pretrained:
            load_pretrained_weights(self, spec, backbone_name, pretrained)

    @classmethod
    def check_args(cls, args: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Find arguments of the right types and ranges that do not go together.

        Args:
            args: Constructor arguments by name; what is left out has its default.

        Returns:
            Pairs of an argument's name and a sentence about it; empty if all is well.
        """
        parameters = inspect.signature(FromConfig).parameters.values()
        defaults = {one.name: one.default for one in parameters}
        return problems_of({**defaults, **args}, cls.backbones)


class FasterRCNN(FromConfig, TwoStageDetector):
    """Faster R-CNN, two stages, with or without a feature pyramid."""

    pyramid_anchors: ClassVar = ((16,), (32,), (64,), (128,), (256,))

    def __init__(
        self,
        *,
        rpn_pre_nms_top_n_train: Count = 2000,
        rpn_pre_nms_top_n_test: Count = 1000,
        rpn_post_nms_top_n_train: Count = 2000,
        rpn_post_nms_top_n_test: Count = 1000,
        box_batch_size_per_image: Count = 512,
        box_head_size: Count = 1024,
        box_head_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        top_proposals: Count = 20,
        **shared: Any,
    ) -> None:
        """Build the detector.

        Args:
            rpn_pre_nms_top_n_train: Proposals per level before NMS in training.
            rpn_pre_nms_top_n_test: The same at test.
            rpn_post_nms_top_n_train: Proposals per image after NMS in training.
            rpn_post_nms_top_n_test: The same at test.
            box_batch_size_per_image: Proposals per image that the box head is trained on.
            box_head_size: Width of the box head, and length of the RoI features.
            box_head_dropout: Share of the box head's hidden values that training drops, and so do
                the passes of ensemble_disagreement; 0 = none.
            top_proposals: Best proposals that are handed out with each image.
            **shared: Of every family (see FromConfig).
        """

        def heads(
            backbone: Backbone, anchors: AnchorGenerator, classes: int, limits: dict[str, Any]
        ) -> dict[str, Any]:
            channels = backbone.out_channels
            rpn = RegionProposals(
                anchors,
                Float32RPNHead(channels, anchors.num_anchors_per_location()[0]),
                {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
                {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
            )
            pool = _roi_pool(backbone.strides)
            roi_heads = RoIHeads(
                pool,
                BoxHead(channels * math.prod(pool.output_size), box_head_size, box_head_dropout),
                FastRCNNPredictor(box_head_size, classes),
                batch_size_per_image=box_batch_size_per_image,
                **limits,
            )
            return {"rpn": rpn, "roi_heads": roi_heads, "top_proposals": top_proposals}

        super().__init__(heads, **shared)


class RetinaNet(FromConfig, OneStageDetector):
    """RetinaNet, one stage: classes and boxes from the anchors of every level."""

    pyramid_anchors: ClassVar = tuple(
        (side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3)))
        for side in (16, 32, 64, 128, 256)
    )

    def __init__(self, *, topk_candidates: Count = 1000, **shared: Any) -> None:
        """Build the detector.

        Args:
            topk_candidates: Best candidates of a level that go into the NMS.
            **shared: Of every family (see FromConfig).
        """

        def heads(
            backbone: Backbone, anchors: AnchorGenerator, classes: int, limits: dict[str, Any]
        ) -> dict[str, Any]:
            n_anchors = anchors.num_anchors_per_location()[0]
            head = DenseHead(backbone.out_channels, n_anchors, classes)
            own = {"anchor_generator": anchors, "head": head, "topk_candidates": topk_candidates}
            return {**own, **limits}

        super().__init__(heads, **shared)


def _roi_pool(strides: Sequence[int]) -> RoIPool:
    """RoI pooling whose scales are fixed here.

    The stock layer derives them from the first batch it sees, and keeps them.
    """
    names = [str(level) for level in range(len(strides))]
    pool = RoIPool(names, output_size=7, sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool
