"""The running difficulty of each class in a training, which class_difficulty_entropy weighs by.

Shape shorthand: B images of a batch, K foreground classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from med_sslal.base.base_trainer import BaseTrainer, Hook
from med_sslal.base.training_step import StepOutcome
from med_sslal.utils.distributed import ALONE, World

MOMENTUM = 0.99


class ClassDifficulty(Hook):
    """d_c = 1 - EMA of the mean quality of class c's positive RoIs in a step (PPAL, CVPR 2024).

    The quality of a RoI is p^0.6 * IoU^0.4 (see ModelOutput.class_quality). A value that is n steps
    old weighs 0.99^n, whether or not the class occurred in those steps, so that a rare class is as
    up to date as a common one. The weights are normalised by their sum: no start value biases the
    mean. A class that was never met has the greatest difficulty, 1.

    Everything stays on the device until the values are asked for.
    """

    def __init__(self, class_names: Sequence[str], world: World = ALONE) -> None:
        self._world = world
        self._names = tuple(class_names)
        self._quality: Tensor | None = None
        self._weight: Tensor | None = None

    def after_step(self, trainer: BaseTrainer, outcome: StepOutcome) -> None:
        """Take in the labelled images of a step."""
        if outcome.class_quality is None:
            return
        counted = ~outcome.pseudo if outcome.share else torch.zeros_like(outcome.pseudo)
        sums = self._world.sum((outcome.class_quality * counted[:, None, None]).sum(0))
        total, number = sums.unbind(1)
        if self._quality is None or self._weight is None:
            self._quality = self._weight = torch.zeros_like(total)
        met = (number > 0).to(total.dtype)
        self._weight = MOMENTUM * self._weight.to(total.device) + met
        # Where the class is met its weight is at least 1, elsewhere `met` leaves the mean alone.
        rate = met / self._weight.clamp(min=1)
        mean = total / number.clamp(min=1)
        self._quality = torch.lerp(self._quality.to(total.device), mean, rate)

    def facts(self) -> dict[str, Any]:
        """Class name to difficulty in [0, 1]; empty where the detector measures no quality."""
        found = [] if self._quality is None else (1 - self._quality.double()).tolist()
        return {"class_difficulty": dict(zip(self._names, found, strict=False))}

    def state_dict(self) -> dict[str, list[float]] | None:
        """The K means and weights as plain numbers; None before the first update."""
        if self._quality is None or self._weight is None:
            return None
        return {"quality": self._quality.tolist(), "weight": self._weight.tolist()}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take over what `state_dict` returned."""
        self._quality = None if state is None else torch.tensor(state["quality"])
        self._weight = None if state is None else torch.tensor(state["weight"])
