"""What a detector is: images in, losses or Detections out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from med_sslal.base.types import Frame, ModelOutput, Target


class BaseModel(nn.Module, ABC):
    """A detector.

    Attributes:
        num_classes: Number of classes C with background.
        autocast_dtype: Low precision inside the forward pass, None for fp32; set from outside.
    """

    num_classes: int
    autocast_dtype: torch.dtype | None = None

    @abstractmethod
    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        """Run the detector.

        Args:
            images: float32 [B, 3, H, W] or B tensors [3, H, W], in [0, 1].
            targets: B labels in the frame of `images`; required in training mode. In eval mode
                they add the (deterministic) validation losses to the same pass.
            frames: B frames; detections are mapped by them to ORIGINAL pixels. None means that
                `images` are in original pixels.

        Returns:
            Training mode: losses per image, and the class quality where the detector measures it
            (class_difficulty_entropy needs it). Eval mode: detections, and losses where targets
            were given.
        """
