"""A learning rate that knows how long its training is, and where that training's tail begins."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from med_sslal.config.schema import Share


def tail_start(total_steps: int, tail: float) -> int:
    """The first step, from 0 on, of the last `tail` (a share) of `total_steps`.

    In the tail the learning rate falls, and a semi-supervised training takes labelled images alone.
    """
    return total_steps - round(tail * total_steps)


class ConstantThenCosine(LRScheduler):
    """Constant, then half a cosine down over the tail of the training, however long that is.

    It moves by steps; `trainer.warmup_steps` rises to it. A training that is made longer goes on
    at the rate of that place in the longer one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        tail: Share = 0.2,
        minimum: Share = 0.0,
        last_epoch: int = -1,
    ) -> None:
        """Hold the rates of the optimiser until `plan` says where the tail begins.

        Args:
            optimizer: What has the rates.
            tail: Share of the training's steps, its last ones, over which the rate falls.
            minimum: Rate after the last step, as a share of the constant one.
            last_epoch: Steps before the first, minus 1.
        """
        self.tail, self.minimum = tail, minimum
        self.total_steps: int | None = None
        super().__init__(optimizer, last_epoch)

    def plan(self, total_steps: int) -> None:
        """Take over the length of the training, and set the rate of the step that comes next."""
        self.total_steps = total_steps
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Tensor]:
        """The rate of step `last_epoch`, from 0 on, of each parameter group."""
        if self.total_steps is None:
            return list(self.base_lrs)
        start = tail_start(self.total_steps, self.tail)
        place = min(1.0, max(0, self.last_epoch - start) / max(self.total_steps - start, 1))
        factor = self.minimum + (1 - self.minimum) * (1 + math.cos(math.pi * place)) / 2
        return [rate * factor for rate in self.base_lrs]
