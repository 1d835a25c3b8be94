"""How gradients become weights: optimiser, schedule, loss scaling, clipping and weight average."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from med_sslal.base.base_model import BaseModel
from med_sslal.base.learning_rate import ConstantThenCosine
from med_sslal.base.settings import TrainerSettings


class Optimisation:
    """One for each training.

    Attributes:
        model: The detector itself, on its device.
        optimizer: Over its parameters.
        kept: What is validated, kept and scored with: `model`, or the average of its weights, in
            which a weight counts half after `half_life` steps (`settings.ema`).
        half_life: Of a weight in the average, in steps.
    """

    def __init__(
        self,
        model: BaseModel,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        scaler: torch.amp.GradScaler,
        settings: TrainerSettings,
        half_life: float = 1.0,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._scheduler, self._scaler, self._settings = scheduler, scaler, settings
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._base_lrs = [float(g.get("initial_lr", g["lr"])) for g in optimizer.param_groups]
        self.half_life = half_life
        self._average = None
        if settings.ema:
            self._average = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        self.kept = model if self._average is None else cast(BaseModel, self._average.module)

    @property
    def lr(self) -> float:
        """The learning rate of the first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def plan(self, total_steps: int) -> None:
        """Tell a schedule that asks for it how long the training is, from its first step on."""
        if isinstance(self._scheduler, ConstantThenCosine):
            self._scheduler.plan(total_steps)

    def start(self) -> None:
        """Begin a step."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the step."""
        self._scaler.scale(loss).backward()

    def step(self, number: int) -> None:
        """End step `number`, from 0 on; warm-up scales the rate of this step only."""
        self._scaler.unscale_(self.optimizer)
        if self._settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.grad_clip)
        factor = min(1.0, (number + 1) / max(self._settings.warmup_steps, 1))
        groups = self.optimizer.param_groups
        scheduled = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = group["lr"] * factor
        self._scaler.step(self.optimizer)
        self._scaler.update()
        for group, lr in zip(groups, scheduled, strict=True):
            group["lr"] = lr
        if self._scheduler is not None and self._settings.lr_interval == "step":
            self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self.model)

    def after_epoch(self, watched: float | None) -> None:
        """Step a schedule that goes by epochs; ReduceLROnPlateau follows `watched`, if measured."""
        if self._scheduler is None or self._settings.lr_interval != "epoch":
            return
        if not isinstance(self._scheduler, ReduceLROnPlateau):
            self._scheduler.step()
        elif watched is not None:
            self._scheduler.step(watched)

    def _blend(self, averaged: Any, current: Any, _: Any) -> None:
        """Move the average on; what is counted in whole numbers is copied."""
        assert self._average is not None
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        # On the CPU, wherever the weights are: no step waits for the device.
        done = int(self._average.n_averaged)
        decay = min(1 - math.log(2) / self.half_life, (1 + done) / (10 + done))
        get_ema_multi_avg_fn(decay)(averaged, current, 0)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the kept weights; they lie in the checkpoint as its model."""
        average = self._average
        return {
            "optimizer": self.optimizer.state_dict(),
            "base_lrs": self._base_lrs,
            "scheduler": self._scheduler and self._scheduler.state_dict(),
            "scaler": self._scaler.state_dict() or None,
            "weights": None if average is None else self.model.state_dict(),
            "averaged": 0 if average is None else int(average.n_averaged),
        }

    def load_state_dict(self, kept: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Take over the kept weights and what `state_dict` returned.

        Where the learning rate was changed for the continuation, the rates of optimiser and
        schedule change by the same factor: they stay at their place of the schedule.
        """
        self.kept.load_state_dict(kept)
        if self._average is not None:
            self.model.load_state_dict(state["weights"])
            self._average.n_averaged.fill_(state["averaged"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self._lay_out_alike()
        if self._scheduler is not None and state["scheduler"] is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        if state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])
        pairs = zip(self._base_lrs, state["base_lrs"], strict=True)
        # A factor of 1 changes no bit.
        factors = [1.0 if new == old else new / old for new, old in pairs]
        for group, factor in zip(self.optimizer.param_groups, factors, strict=True):
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
        for name in ("base_lrs", "_last_lr"):
            rates = getattr(self._scheduler, name, None)
            if rates is not None:
                scaled = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
                setattr(self._scheduler, name, scaled)

    def _lay_out_alike(self) -> None:
        """Give the optimiser's state of each weight the weight's own layout in memory.

        A fused step goes through both in memory order, and a checkpoint may come from a run without
        `trainer.channels_last`.
        """
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                alike = not isinstance(value, Tensor) or value.stride() == parameter.stride()
                if not alike and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
