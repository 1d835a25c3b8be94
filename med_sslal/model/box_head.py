"""The box head: pooled RoIs to features, with dropout where it is asked for.

Shape shorthand: R RoIs, F length of the features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from med_sslal.utils.util import stable_hash


class BoxHead(TwoMLPHead):
    """torchvision's two layers, each followed by dropout in training.

    In eval mode nothing is dropped, unless `sampled` is called. Without dropout it is the stock
    head; the parameters have the stock names in any case.
    """

    def __init__(self, in_channels: int, size: int, dropout: float) -> None:
        """Make the layers.

        Args:
            in_channels: Values of a pooled RoI.
            size: Length F of the features.
            dropout: Share of the hidden values that are dropped, from 0 to less than 1.
        """
        super().__init__(in_channels, size)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features [R, F] of pooled RoIs [R, ...]."""
        if not (self.training and self.dropout):
            return super().forward(x)
        hidden = F.dropout(self.first(x), self.dropout)
        return F.dropout(self._second(hidden), self.dropout)

    def first(self, pooled: Tensor) -> Tensor:
        """The first layer, before any dropout: [R, F] of pooled RoIs [R, ...]."""
        return F.relu(self.fc6(pooled.flatten(1)))

    def sampled(self, hidden: Tensor, masks: Tensor) -> Tensor:
        """Features [R, F] from the first layer's [R, F] under the masks [2, R, F]."""
        return self._second(hidden * masks[0]) * masks[1]

    def mask(self, image_id: str, number: int) -> Tensor:
        """What is dropped after both layers in one pass over one image.

        It is one network for all boxes of the image, so neither their number nor their order
        matters, and it depends on nothing but the arguments.

        Args:
            image_id: The image.
            number: Of the pass.

        Returns:
            float32 [2, F] on the CPU: 0 or 1 / (1 - dropout).
        """
        generator = torch.Generator().manual_seed(stable_hash("dropout", image_id, number))
        kept = torch.rand(2, self.fc7.out_features, generator=generator) >= self.dropout
        return kept / (1 - self.dropout)

    def _second(self, hidden: Tensor) -> Tensor:
        """The second layer, before its dropout."""
        return F.relu(self.fc7(hidden))
