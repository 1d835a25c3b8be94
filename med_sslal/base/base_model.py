"""What a detector is: images in, losses or Detections out."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from med_sslal.base.types import Extras, Frame, ModelOutput, Target

# What a strategy may need of a detector beyond boxes, labels, scores and embedding.
ABILITIES: Mapping[str, str] = MappingProxyType(
    {
        "class_probs": "class probabilities of every detection",
        "proposals": "the proposal that each box was regressed from",
        "objectness": "the best proposals with their objectness",
        "class_quality": "the quality of its training boxes (ModelOutput.class_quality)",
        "roi_features": "RoI features of every detection",
        "refined_boxes": "the box head's own box for every final box",
        "dropout": "passes of the RoI heads with dropout",
        "views": "boxes mapped back from mirrored and turned images",
    }
)


class BaseModel(nn.Module, ABC):
    """A detector; `autocast_dtype` and `extras` are set from outside."""

    num_classes: int  # C, with background
    autocast_dtype: torch.dtype | None = None  # low precision inside the forward pass, or fp32
    memory_format: torch.memory_format = torch.contiguous_format  # of weights and batches
    extras: Extras = Extras()  # what an eval pass hands out beside the plain detections

    @classmethod
    def abilities(cls, args: Mapping[str, Any]) -> frozenset[str]:
        """Which of ABILITIES a detector has that is made with `args` (with their defaults).

        A run is refused before its training where a criterion needs one that is missing; none is
        there unless a subclass says so. Fields of Detections that a detector cannot fill hold zeros
        of the right shape.
        """
        return frozenset()

    def compilable(self) -> tuple[nn.Module, ...]:
        """Parts that `trainer.compile` compiles in place: shapes fixed, nothing that waits."""
        return ()

    def use_channels_last(self) -> None:
        """Lay the convolutions' weights, and so what they compute, out with channels last."""
        self.memory_format = torch.channels_last
        self.to(memory_format=torch.channels_last)

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
