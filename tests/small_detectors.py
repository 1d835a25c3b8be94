"""A detector of few tensors: a run with it spends its time on the run, not on a backbone."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

from torch import nn

from med_sslal.model.backbone import BACKBONES, BackboneSpec
from med_sslal.model.detectors import FasterRCNN, RetinaNet

CHANNELS = (3, 16, 16, 32, 32, 64)


def build_small(norm_layer: Callable[[int], nn.Module]) -> nn.Module:
    """Five convolutions, each with half the resolution; its children are named "0" to "4"."""
    stages = [
        nn.Sequential(
            nn.Conv2d(narrow, wide, 3, stride=2, padding=1, bias=False), norm_layer(wide), nn.ReLU()
        )
        for narrow, wide in pairwise(CHANNELS)
    ]
    return nn.Sequential(OrderedDict((str(i), stage) for i, stage in enumerate(stages)))


SMALL = BackboneSpec(
    build=build_small,
    stages=tuple((str(i),) for i in range(len(CHANNELS) - 1)),
    returned_stages=(1, 2, 3, 4),
)


class SmallRCNN(FasterRCNN):
    """Faster R-CNN that knows a small backbone too."""

    backbones: ClassVar = {**BACKBONES, "small": SMALL}


class SmallRetinaNet(RetinaNet):
    """RetinaNet that knows it too."""

    backbones: ClassVar = SmallRCNN.backbones
