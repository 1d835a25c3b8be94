"""Backbones: what turns an image into feature maps, and the registry of them.

Naming: a stage is a run of layers at one resolution; C5 is the output of the last one. A pyramid
(FPN) has one level per returned stage and a coarser "pool" level on top of them. Parameter names
are those of torchvision's detectors, so their weights load.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import (
    MobileNet_V2_Weights,
    MobileNet_V3_Large_Weights,
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    mobilenet_v2,
    mobilenet_v3_large,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
)
from torchvision.models._api import WeightsEnum
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN

Features = dict[str, Tensor]


@dataclass(frozen=True)
class BackboneSpec:
    """How to make one backbone.

    Attributes:
        build: Called with `norm_layer=` (a factory that takes the channels); returns a module
            whose children, run in order, are the network.
        stages: Names of the children of each stage, finest first.
        returned_stages: Stages that feed the pyramid unless the config says otherwise.
        output: Which child of a stage gives its output: -1 is the last. The first one has seen
            little more than the finer stage (brain MRI, 100 labels, mobilenet_v2: AP50 0.240
            with the first, 0.584 with the last).
        weights: Its ImageNet weights, None where there are none.
        weights_prefix: What stands before the children's names in those weights.
        norm_eps: The eps with which those weights were trained.
    """

    build: Callable[..., nn.Module]
    stages: tuple[tuple[str, ...], ...]
    returned_stages: tuple[int, ...]
    output: int = -1
    weights: WeightsEnum | None = None
    weights_prefix: str = ""
    norm_eps: float = 1e-5


def _resnet(build: Callable[..., nn.Module], weights: WeightsEnum) -> BackboneSpec:
    """The entry of a ResNet."""
    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
    return BackboneSpec(build, stages, (1, 2, 3, 4), weights=weights)


def _mobilenet(
    build: Callable[..., Any], weights: WeightsEnum, starts: Sequence[int], **rest: Any
) -> BackboneSpec:
    """The entry of a MobileNet; `starts` are the first blocks of its stages, and the end."""
    return BackboneSpec(
        build=lambda norm_layer: build(norm_layer=norm_layer).features,
        stages=tuple(tuple(map(str, range(*bounds))) for bounds in pairwise(starts)),
        weights=weights,
        weights_prefix="features.",
        **rest,
    )


BACKBONES: Mapping[str, BackboneSpec] = {
    "resnet18": _resnet(resnet18, ResNet18_Weights.IMAGENET1K_V1),
    "resnet34": _resnet(resnet34, ResNet34_Weights.IMAGENET1K_V1),
    "resnet50": _resnet(resnet50, ResNet50_Weights.IMAGENET1K_V1),
    "resnet101": _resnet(resnet101, ResNet101_Weights.IMAGENET1K_V1),
    "mobilenet_v2": _mobilenet(
        mobilenet_v2,
        MobileNet_V2_Weights.IMAGENET1K_V1,
        (0, 2, 4, 7, 14, 18, 19),
        returned_stages=(1, 2, 3, 4),
    ),
    # torchvision's own detector takes the first blocks, and its weights are to fit.
    "mobilenet_v3_large": _mobilenet(
        mobilenet_v3_large,
        MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        (0, 2, 4, 7, 13, 16, 17),
        returned_stages=(1, 2, 3, 5),
        output=0,
        norm_eps=1e-3,
    ),
}


class PyramidBackbone(BackboneWithFPN):
    """torchvision's backbone with FPN that hands out C5 as well.

    Attributes:
        out_channels: Channels of every level.
        strides: Pixels of the input per cell, for every returned stage.
    """

    strides: tuple[int, ...]

    def forward(self, x: Tensor) -> tuple[Features, Tensor]:
        """Compute the levels and C5.

        Args:
            x: [B, 3, H, W], normalised.

        Returns:
            Level name ("0", "1", ..., "pool") to [B, channels, h, w]; C5 [B, D, h, w].
        """
        stages = self.body(x)
        c5 = next(reversed(stages.values()))
        return self.fpn(stages), c5


class SingleLevelBackbone(nn.Module):
    """A backbone without FPN: C5 reduced to fewer channels.

    Attributes:
        out_channels: Channels of the only level.
        strides: Pixels of the input per cell.
    """

    def __init__(
        self, network: nn.Module, name: str, width: int, stride: int, channels: int
    ) -> None:
        """Make it, `channels` wide, on the child `name`, of this width, of `network`."""
        super().__init__()
        self.body = IntermediateLayerGetter(network, {name: "0"})
        self.reduce = nn.Conv2d(width, channels, kernel_size=1)
        self.out_channels = channels
        self.strides = (stride,)

    def forward(self, x: Tensor) -> tuple[Features, Tensor]:
        """Compute {"0": [B, channels, h, w]} and C5 [B, D, h, w] from [B, 3, H, W]."""
        c5 = self.body(x)["0"]
        return OrderedDict([("0", self.reduce(c5))]), c5


Backbone = PyramidBackbone | SingleLevelBackbone


def build_backbone(
    spec: BackboneSpec,
    *,
    norm_layer: Callable[[int], nn.Module],
    fpn: bool,
    returned_stages: Sequence[int],
    trainable_layers: int,
    channels: int,
) -> Backbone:
    """Make a backbone with random weights.

    Args:
        spec: Its entry of the registry.
        norm_layer: Factory of normalisation layers.
        fpn: Build the pyramid; else only the last of `returned_stages` is used.
        returned_stages: Stages that feed the pyramid, finest first.
        trainable_layers: Number of stages, from the last, that learn.
        channels: Width of every level.
    """
    network = spec.build(norm_layer=norm_layer)
    n_frozen = len(spec.stages) - trainable_layers
    frozen = {name for stage in spec.stages[:n_frozen] for name in stage}
    for name, child in network.named_children():
        if name in frozen:
            child.requires_grad_(False)
    names = [spec.stages[stage][spec.output] for stage in returned_stages]
    # Their widths and strides are found with one empty image.
    body, side = IntermediateLayerGetter(network, {name: name for name in names}), 64
    body.eval()
    with torch.no_grad():
        outputs = body(torch.zeros(1, 3, side, side))
    body.train()
    widths = [outputs[name].shape[1] for name in names]
    strides = tuple(side // outputs[name].shape[-1] for name in names)
    if not fpn:
        return SingleLevelBackbone(network, names[-1], widths[-1], strides[-1], channels)
    levels = {name: str(level) for level, name in enumerate(names)}
    pyramid = PyramidBackbone(network, levels, widths, channels)
    pyramid.strides = strides
    return pyramid
