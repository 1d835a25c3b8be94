"""Normalisation layers of a backbone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

NormName = Literal["frozen", "batch", "group"]


class FastFrozenNorm(FrozenBatchNorm2d):
    """Batch norm with fixed statistics and weights, as one operation.

    Buffers and state dict are torchvision's. The stock layer spends nine operations and computes
    in fp32 under autocast; `F.batch_norm` gives the same within rounding and keeps bf16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class FoldedSequential(nn.Sequential):
    """Layers in turn, each frozen norm as a part of the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        """What the layers make of `x`, within rounding.

        A norm of fixed statistics is another scale of the weights and a bias, so that no
        activations are read and written for it.
        """
        layers = list(self)
        while layers:
            layer, norm = layers.pop(0), layers[0] if layers else None
            if not (isinstance(norm, FastFrozenNorm) and _takes_a_norm(layer)):
                x = layer(x)
                continue
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight = layer.weight * scale[:, None, None, None]
            bias = norm.bias - norm.running_mean * scale
            x = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
            layers.pop(0)
        return x


def _takes_a_norm(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    return type(layer) is nn.Conv2d and layer.bias is None and layer.padding_mode == "zeros"


def fold_frozen_norms(model: nn.Module) -> None:
    """Let every sequence in a model compute its frozen norms inside its convolutions, in place.

    Modules, parameters and buffers stay the same objects with the same names. It is for networks of
    small convolutions, such as MobileNets: in a ResNet, scaling the weights takes as long as the
    norm does.
    """
    for module in model.modules():
        if type(module).forward is nn.Sequential.forward:
            # Nothing but the way of computing changes.
            module.__class__ = FoldedSequential


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes; torch's own does it on GPUs alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        # In float64: the difference of two large sums is to be as good as one process's variance.
        wide = x.double()
        number = wide.new_full((1,), x.numel() / x.shape[1])
        parts = [wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), number]
        totals = all_reduce(torch.cat(parts))
        sums, squares, number = totals.split([x.shape[1], x.shape[1], 1])
        mean = sums / number
        variance = (squares / number - mean.square()).clamp(min=0)
        assert self.momentum is not None and self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            unbiased = variance * number / (number - 1).clamp(min=1)
            for running, own in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(own.to(running.dtype), self.momentum)
        scale = (variance + self.eps).rsqrt()
        result = ((wide - mean[:, None, None]) * scale[:, None, None]).to(x.dtype)
        return (result * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def share_batch_norm(model: nn.Module) -> None:
    """Let every batch norm of a model see the images of all processes, in place.

    Parameters and buffers stay the same objects with the same names.
    """
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d) and child.weight.device.type == "cpu":
            # Nothing but the way of computing changes.
            child.__class__ = SharedBatchNorm
        elif isinstance(child, nn.BatchNorm2d):
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        else:
            share_batch_norm(child)


def learns_batch_norm(model: nn.Module) -> bool:
    """Whether a model takes statistics over the images of a batch in training."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def norm_layer(name: NormName, eps: float) -> Callable[[int], nn.Module]:
    """A factory of layers, given the channels; `frozen` and `batch` add `eps` to variances."""
    if name == "group":
        # In 32 groups, or in as many as divide both 32 and the channels.
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels)
    return partial(FastFrozenNorm if name == "frozen" else nn.BatchNorm2d, eps=eps)
