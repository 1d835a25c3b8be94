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
from torchvision.models import get_model_builder, get_model_weights
from torchvision.models._api import WeightsEnum
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from med_sslal.model.norm import fold_frozen_norms

Features = dict[str, Tensor]

# torchvision's first ImageNet weights, with which its detectors begin.
_WEIGHTS = "IMAGENET1K_V1"


@dataclass(frozen=True)
class BackboneSpec:
    """How to make one backbone."""

    # Called with `norm_layer=` (a factory that takes the channels); returns a module whose
    # children, run in order, are the network.
    build: Callable[..., nn.Module]
    stages: tuple[tuple[str, ...], ...]  # Names of the children of each stage, finest first.
    returned_stages: tuple[int, ...]  # Those that feed the pyramid unless the config says it.
    # Which child of a stage gives its output: -1 is the last. The first one has seen little more
    # than the finer stage (brain MRI, 100 labels, mobilenet_v2: AP50 0.240 with the first, 0.584
    # with the last).
    output: int = -1
    weights: WeightsEnum | None = None  # Its ImageNet weights, None where there are none.
    weights_prefix: str = ""  # What stands before the children's names in those weights.
    norm_eps: float = 1e-5  # With which those weights were trained.


def _resnet(name: str) -> BackboneSpec:
    stages = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
    weights = get_model_weights(name)[_WEIGHTS]
    return BackboneSpec(get_model_builder(name), stages, (1, 2, 3, 4), weights=weights)


def _mobilenet(name: str, starts: Sequence[int], **rest: Any) -> BackboneSpec:
    """The entry of a MobileNet; `starts` are the first blocks of its stages, and the end."""
    build: Callable[..., Any] = get_model_builder(name)
    return BackboneSpec(
        build=lambda norm_layer: build(norm_layer=norm_layer).features,
        stages=tuple(tuple(map(str, range(*bounds))) for bounds in pairwise(starts)),
        weights=get_model_weights(name)[_WEIGHTS],
        weights_prefix="features.",
        **rest,
    )


BACKBONES: Mapping[str, BackboneSpec] = {
    **{name: _resnet(name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")},
    "mobilenet_v2": _mobilenet(
        "mobilenet_v2", (0, 2, 4, 7, 14, 18, 19), returned_stages=(1, 2, 3, 4)
    ),
    # torchvision's own detector takes the first blocks, and its weights are to fit.
    "mobilenet_v3_large": _mobilenet(
        "mobilenet_v3_large",
        (0, 2, 4, 7, 13, 16, 17),
        returned_stages=(1, 2, 3, 5),
        output=0,
        norm_eps=1e-3,
    ),
}


class Backbone(nn.Module):
    """A network with feature levels on top of its stages, of random weights.

    With `fpn` the pyramid stands on `returned_stages`, finest first; else the only level is the
    last of these, reduced to `channels`. The last `trainable_layers` stages learn.

    Attributes:
        out_channels: Channels of every level.
        strides: Pixels of the input per cell, for every returned stage.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        *,
        norm_layer: Callable[[int], nn.Module],
        fpn: bool,
        returned_stages: Sequence[int],
        trainable_layers: int,
        channels: int,
    ) -> None:
        super().__init__()
        network = spec.build(norm_layer=norm_layer)
        fold_frozen_norms(network)
        n_frozen = len(spec.stages) - trainable_layers
        frozen = {name for stage in spec.stages[:n_frozen] for name in stage}
        for name, child in network.named_children():
            if name in frozen:
                child.requires_grad_(False)
        names = [spec.stages[stage][spec.output] for stage in returned_stages][0 if fpn else -1 :]
        self.body = IntermediateLayerGetter(network, {name: str(i) for i, name in enumerate(names)})
        # Widths and strides are found with one empty image.
        side, self.out_channels = 64, channels
        with torch.no_grad():
            stages = list(self.body.eval()(torch.zeros(1, 3, side, side)).values())
        self.body.train()
        widths = [stage.shape[1] for stage in stages]
        self.strides = tuple(side // stage.shape[-1] for stage in stages)
        if fpn:
            self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool())
        else:
            self.reduce = nn.Conv2d(widths[0], channels, kernel_size=1)

    def forward(self, x: Tensor) -> tuple[Features, Tensor]:
        """Levels, by name ("0", "1", ..., "pool") [B, channels, h, w], and C5 [B, D, h, w].

        The images `x` [B, 3, H, W] are normalised.
        """
        stages = self.body(x)
        c5 = next(reversed(stages.values()))
        if hasattr(self, "fpn"):
            return self.fpn(stages), c5
        return OrderedDict([("0", self.reduce(c5))]), c5
