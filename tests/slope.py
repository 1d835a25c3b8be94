"""A detector of one weight whose gradient is known, and its training: w falls by the rate.

The loss of an image is w times its brightness, so after a step of plain SGD on images of brightness
1, w has fallen by exactly the learning rate of that step.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from trainings import settings_of, training_of

from med_sslal.base.base_dataset import Images
from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Annotation, Frame, ImageInfo, ModelOutput, Target
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.interrupt import Interrupted, StopRequest


class Flat(Images):
    """Pictures of one brightness each."""

    def __init__(self, brightness: Sequence[float]) -> None:
        names = [f"image{number}" for number in range(len(brightness))]
        self.brightness = dict(zip(names, brightness, strict=True))
        infos = {name: ImageInfo(name, name, name, (32, 32)) for name in names}
        super().__init__(infos, {"train": tuple(names), "val": (), "test": ()})

    def read(self, image_id: str) -> np.ndarray:
        return np.full((32, 32, 3), self.brightness[image_id], dtype=np.float32)


class Slope(BaseModel):
    """One weight; remembers it, and the images' brightness, at each forward pass.

    Where asked to, it finds one box of "thing" in every image and one of "bright" in bright ones,
    of a quality that equals the brightness.
    """

    num_classes = 4

    def __init__(self, graded: bool = True) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []
        self.shown: list[list[float]] = []
        self.graded = graded

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        assert isinstance(images, Tensor)
        self.seen.append(self.w.item())
        brightness = images.mean((1, 2, 3))
        self.shown.append(brightness.tolist())
        loss = self.w * brightness
        quality = None
        if self.graded:
            one, bright = torch.ones_like(brightness), (brightness > 0.5).float()
            counts = torch.stack([one, bright, 0 * one], 1)
            quality = torch.stack([counts * brightness[:, None], counts], 2)
        return ModelOutput({"loss_classifier": loss, "loss_box_reg": 0 * loss}, [], quality)


class StopAt(StopRequest):
    """A signal that comes at the n-th check."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(15)


def trainer_of(
    folder: Path,
    *,
    brightness: Sequence[float] = (1.0,) * 8,
    n_pseudo: int = 0,
    lr: float = 0.25,
    optimizer: type = torch.optim.SGD,
    scheduler: Callable[[Any], Any] | None = None,
    evaluate: Callable[[int], dict[str, float | None]] = lambda epoch: {"val_loss": 1.0},
    stop: StopRequest | None = None,
    graded: bool = True,
    batch_size: int = 2,
    **settings: Any,
) -> tuple[Trainer, Slope]:
    """A trainer over batches of two, and of two more that are pseudo-labelled."""
    data, model = Flat(brightness), Slope(graded)
    step_by = optimizer(model.parameters(), lr=lr)
    trainer = training_of(
        folder,
        model,
        data,
        data.splits["train"],
        step_by,
        settings_of(**{"epochs": 2, **settings}),
        labels=dict.fromkeys(data.infos, Annotation.empty()),
        side=32,
        batch_size=batch_size,
        n_pseudo=n_pseudo,
        scheduler=scheduler and scheduler(step_by),
        evaluate=evaluate,
        stop=stop,
        class_names=("thing", "bright", "never"),
    )
    return trainer, model


def steps_of(model: Slope) -> list[float]:
    """How far w fell in each step."""
    return (-np.diff([*model.seen, model.w.item()])).tolist()


def scripted(values: Sequence[float | None]) -> Callable[[int], dict[str, float | None]]:
    return lambda epoch: {"val_loss": values[epoch - 1]}
