"""Normalisation layers of a backbone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from torch import Tensor, nn
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


def _group_norm(channels: int) -> nn.GroupNorm:
    """Group norm in 32 groups, or in as many as divide both 32 and the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


def norm_layer(name: NormName, eps: float) -> Callable[[int], nn.Module]:
    """A factory of normalisation layers, called with the number of channels.

    Args:
        name: `frozen`, `batch` or `group`.
        eps: Added to the variance by `frozen` and `batch`.
    """
    if name == "group":
        return _group_norm
    return partial(FastFrozenNorm if name == "frozen" else nn.BatchNorm2d, eps=eps)
