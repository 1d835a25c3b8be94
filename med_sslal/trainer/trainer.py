"""One training of a detector: supervised on labelled images, plus pseudo-labelled ones.

B images of a batch; an epoch is one pass over the labelled images.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_trainer import BaseTrainer, CheckpointFolder
from med_sslal.base.monitor import Monitor
from med_sslal.base.types import Batch, Frame, ModelOutput
from med_sslal.data.sampler import EpochBatchSampler
from med_sslal.logger.progress import Progress, duration
from med_sslal.logger.visualization import TensorboardWriter
from med_sslal.model.parallel import gather_outputs, scatter_parts
from med_sslal.trainer.difficulty import ClassDifficulty
from med_sslal.trainer.settings import TrainerSettings
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.train_util import peak_memory
from med_sslal.utils.util import stable_hash

logger = logging.getLogger(__name__)

# Steps between two looks at the losses on a GPU: each look waits for the device.
LOSS_CHECK_STEPS = 10


class Trainer(BaseTrainer):
    """Trains one model in one folder."""

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        model: nn.Module,
        bare_model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        loader: BaseDataLoader,
        sampler: EpochBatchSampler,
        evaluate: Callable[[int], dict[str, float | None]],
        settings: TrainerSettings,
        device: torch.device,
        scaler: torch.amp.GradScaler | None,
        writer: TensorboardWriter,
        stop: StopRequest,
        identity: Mapping[str, Any],
        class_names: Sequence[str],
        title: str = "",
        cycles_left: int = 0,
        world: World = ALONE,
    ) -> None:
        """Prepare a training.

        Args:
            folder: Where the checkpoints go; it exists.
            model: What computes the losses: the detector, or what spreads it over devices.
            bare_model: The detector itself.
            optimizer: Over the detector's parameters.
            scheduler: None keeps the learning rate.
            loader: Training batches, in the sampler's order.
            sampler: The loader's batch sampler.
            evaluate: Given the finished epochs, returns the `val_` values.
            settings: The scalars.
            device: Where the batches go.
            scaler: Loss scaling for fp16, else None.
            writer: TensorBoard of this training.
            stop: Checked before every batch.
            identity: Plain values that every checkpoint carries.
            class_names: Names without background, for the difficulty of each class.
            title: For the progress line, such as "cycle 1/3".
            cycles_left: Trainings that follow, for the time left.
            world: The processes that train together, with the sampler's and the model's.
        """
        self._batches = len(sampler)
        self._total_steps = settings.steps_per_cycle or settings.epochs * self._batches
        super().__init__(
            folder,
            epochs=math.ceil(self._total_steps / self._batches),
            monitor=Monitor(settings.monitor, settings.early_stop),
            save_period=settings.save_period,
            checkpoint_seconds=settings.checkpoint_seconds,
            identity=identity,
            world=world,
        )
        self._model, self._bare, self._device = model, bare_model, device
        self._optimizer, self._scheduler, self._scaler = optimizer, scheduler, scaler
        self._loader, self._sampler = loader, sampler
        self._evaluate, self._settings = evaluate, settings
        self._writer, self._stop, self._title = writer, stop, title
        self._cycles_left = cycles_left
        self._started, self._first_step, self._seen = time.monotonic(), 0, 0
        self._parameters = [p for p in bare_model.parameters() if p.requires_grad]
        self._base_lrs = base_lrs(optimizer)
        self._sums: dict[str, float] = {}
        self._pending: list[tuple[list[str], dict[str, Tensor], Tensor, float]] = []
        self._last_validation = 0
        self._difficulty = ClassDifficulty(class_names, world)

    @property
    def step(self) -> int:
        """Finished optimiser steps."""
        return min(self.epoch * self._batches + self.batch, self._total_steps)

    def _epoch_batches(self) -> int:
        """Batches of the current epoch; the last one may be cut short by `steps_per_cycle`."""
        return min(self._batches, self._total_steps - self.epoch * self._batches)

    def train_epoch(self) -> dict[str, float | None]:
        """Train to the end of the epoch; returns mean losses and the learning rate."""
        self._model.train()
        self._sampler.set_epoch(self.epoch)
        self._sampler.set_start(self.batch)
        total = self._epoch_batches()
        text = f"{self._title} epoch {self.epoch + 1}/{self.epochs}"
        if not self._seen:
            self._started, self._first_step = time.monotonic(), self.step
        batches = iter(self._loader)
        show = self._settings.show_progress
        with Progress(text, total, done=self.batch, show=show) as progress:
            while self.batch < total:
                try:
                    self.world.check(self._stop)
                finally:
                    self._settle()
                batch = next(batches)
                self._train_step(batch.to(self._device))
                self._seen += sum(self._sampler.counts(self.batch))
                self.batch += 1
                if self._device.type == "cpu" or len(self._pending) >= LOSS_CHECK_STEPS:
                    self._settle()
                progress.advance(self._note() if progress.due() else "")
                if self.save_due():
                    self._settle()
                    self.save_position()
        self._settle()
        lr = self._optimizer.param_groups[0]["lr"]
        mean: dict[str, float | None] = {
            name: value / total for name, value in sorted(self._sums.items())
        }
        return {**mean, "lr": lr, "epoch": self.epoch + 1, "step": self.step}

    def _note(self) -> str:
        """Losses, learning rate, pace, memory and what is left, for the progress line."""
        done = max(self.batch, 1)
        lr = self._optimizer.param_groups[0]["lr"]
        losses = ", ".join(
            f"{name.removeprefix('loss_')} {value / done:.3f}"
            for name, value in sorted(self._sums.items())
        )
        elapsed = time.monotonic() - self._started
        per_step = elapsed / max(self.step - self._first_step, 1)
        cycle = per_step * (self._total_steps - self.step)
        run = cycle + self._cycles_left * per_step * self._total_steps
        return (
            f"{losses}, lr {lr:.2g}, {self._seen / max(elapsed, 1e-9):.1f} images/s, "
            f"{peak_memory(self._device)}, cycle {duration(cycle)}, run {duration(run)} left"
        )

    def _train_step(self, batch: Batch) -> None:
        """One optimiser step; the gradients of the batch's parts add up to that of the batch."""
        self._optimizer.zero_grad(set_to_none=True)
        n_own, n_all = len(self._sampler.share(self.batch)), sum(self._sampler.counts(self.batch))
        weights = self._image_weights(batch.pseudo)
        if not n_own:
            weights = torch.zeros_like(weights)
        # The processes take as many parts, because they wait for each other in each.
        n_parts = min(self._settings.accumulate, max(n_all // self.world.size, 1))
        parts = scatter_parts(batch.images, batch.targets, self._seeded(batch.frames), n_parts)
        sizes = [len(images) for images, *_ in parts]
        outputs: list[ModelOutput] = []
        for part, weight in zip(parts, weights.split(sizes), strict=True):
            with self._in_step(is_last=len(outputs) == len(parts) - 1):
                outputs.append(self._model(*part))
                loss = (torch.stack(list(outputs[-1].losses.values())).sum(0) * weight).sum()
                # The gradients of the processes are averaged, and are to be added up.
                loss = loss * self.world.size
                (loss if self._scaler is None else self._scaler.scale(loss)).backward()
        output = gather_outputs(outputs, self._device)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        if self._settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._settings.grad_clip)
        self._optimizer_step()
        if output.class_quality is not None:
            counted = ~batch.pseudo if n_own else torch.zeros_like(batch.pseudo)
            self._difficulty.update(output.class_quality, counted)
        names = [frame.info.image_id for frame in batch.frames]
        losses = {name: value.detach() for name, value in output.losses.items()}
        loss = (torch.stack(list(losses.values())).sum(0) * weights).sum()
        self._pending.append((names, losses, loss, n_own / n_all))

    def _seeded(self, frames: Sequence[Frame]) -> list[Frame]:
        """The frames with seeds of their own in this step.

        What is drawn for an image is then the same in whichever process, device or part of the
        batch it is.
        """
        key = ("samples", self._sampler.seed, self.step)
        return [replace(frame, seed=stable_hash(*key, frame.info.image_id)) for frame in frames]

    def _in_step(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Several processes exchange gradients in the last part of a batch only."""
        if is_last or not isinstance(self._model, DistributedDataParallel):
            return nullcontext()
        return self._model.no_sync()

    def _image_weights(self, pseudo: Tensor) -> Tensor:
        """Weights [B] of the images' losses, summed then.

        They give the mean over the labelled images of the batch plus the weighted mean over its
        pseudo-labelled ones, in whichever process these are.
        """
        labelled, others = self._sampler.counts(self.batch)
        if not self._sampler.n_pseudo:
            return torch.full(pseudo.shape, 1 / labelled, device=pseudo.device)
        # The ramp lasts the first tenth of the steps: early pseudo-labels would drown the labels.
        ramp = min(1.0, self.step / max(0.1 * self._total_steps, 1.0))
        n_labelled, n_pseudo = (
            torch.full((), number, device=pseudo.device) for number in (labelled, others)
        )
        return torch.where(pseudo, self._settings.pseudo_weight * ramp / n_pseudo, 1 / n_labelled)

    def _optimizer_step(self) -> None:
        """Step optimiser and per-step schedule; warm-up scales the rate of this step only."""
        factor = min(1.0, (self.step + 1) / max(self._settings.warmup_steps, 1))
        scheduled = [group["lr"] for group in self._optimizer.param_groups]
        for group in self._optimizer.param_groups:
            group["lr"] = group["lr"] * factor
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            self._optimizer.step()
        for group, lr in zip(self._optimizer.param_groups, scheduled, strict=True):
            group["lr"] = lr
        if self._scheduler is not None and self._settings.lr_interval == "step":
            self._scheduler.step()

    def _settle(self) -> None:
        """Read the losses of the last steps from the device, and stop at a non-finite one.

        Raises:
            UserError: A loss is NaN or infinite; the text names the batch's images.
        """
        pending, self._pending = self._pending, []
        for names, losses, loss, share in pending:
            value = loss.item()
            if not math.isfinite(value):
                parts = {k: v.tolist() for k, v in losses.items() if not v.isfinite().all()}
                raise UserError(
                    f"the loss is {value} at step {self.step} for the batch of images "
                    f"{', '.join(names)} ({', '.join(parts) or 'their sum'}): lower "
                    "optimizer.args.lr or set trainer.grad_clip"
                )
            values = {"loss": value}
            values |= {name: tensor.mean().item() * share for name, tensor in losses.items()}
            total = self.world.sum(torch.tensor(list(values.values()), dtype=torch.float64))
            for name, number in zip(values, total.tolist(), strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + number

    def validation_due(self) -> bool:
        """Every `val_period` epochs, or `val_steps` steps where given."""
        every = self._settings.val_steps
        done = min(self.epoch * self._batches, self._total_steps)
        if every is None:
            return self.epoch % self._settings.val_period == 0
        return done - self._last_validation >= every

    def validate(self) -> dict[str, float | None]:
        """The `val_` values of the model as it is."""
        values = self._evaluate(self.epoch)
        self._last_validation = min(self.epoch * self._batches, self._total_steps)
        return values

    def after_epoch(self, values: Mapping[str, float | None]) -> None:
        """Step the schedule and log."""
        self._sums = {}
        if self._scheduler is not None and self._settings.lr_interval == "epoch":
            if isinstance(self._scheduler, ReduceLROnPlateau):
                watched = values.get(self.monitor.key or "val_loss")
                if watched is not None:
                    self._scheduler.step(watched)
            else:
                self._scheduler.step()
        self._writer.scalars(
            {name: value for name, value in values.items() if name not in ("epoch", "step")},
            self.step,
        )
        difficulty = self._difficulty.values()
        self._writer.scalars({f"difficulty/{k}": v for k, v in difficulty.items()}, self.step)
        shown = ", ".join(
            f"{name} {value:.4g}"
            for name, value in values.items()
            if value is not None
            and (name in ("loss", "lr", "val_loss") or name.startswith("val_"))
            and "/" not in name
        )
        level = logging.INFO if any(name.startswith("val_") for name in values) else logging.DEBUG
        text = f"{self._title} epoch {self.epoch}/{self.epochs}"
        logger.log(level if self._settings.show_progress else logging.DEBUG, "%s: %s", text, shown)

    def model_state(self) -> dict[str, Any]:
        """The detector's state dict."""
        return self._bare.state_dict()

    def model_facts(self) -> dict[str, Any]:
        """`class_difficulty`: by class name, over the labelled images trained on so far."""
        return {"class_difficulty": self._difficulty.values()}

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, its rates before any schedule, schedule, loss scaling, running values."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "base_lrs": self._base_lrs,
            "scheduler": self._scheduler and self._scheduler.state_dict(),
            "scaler": self._scaler and self._scaler.state_dict(),
            "sums": self._sums,
            "last_validation": self._last_validation,
            "class_difficulty": self._difficulty.state_dict(),
        }

    def load_state_dict(self, model: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Take over what `model_state` and `state_dict` returned.

        Where the learning rate was changed for the continuation, the rates of optimiser and
        schedule change by the same factor: they stay at their place of the schedule.
        """
        self._bare.load_state_dict(model)
        self._optimizer.load_state_dict(dict(state["optimizer"]))
        _lay_out_alike(self._optimizer)
        if self._scheduler is not None and state["scheduler"] is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        if self._scaler is not None and state["scaler"] is not None:
            self._scaler.load_state_dict(state["scaler"])
        pairs = zip(self._base_lrs, state["base_lrs"], strict=True)
        self._rescale([1.0 if new == old else new / old for new, old in pairs])
        self._sums = dict(state["sums"])
        self._last_validation = state["last_validation"]
        # Checkpoints from before it was kept lack it: only the steps from here on count then.
        self._difficulty.load_state_dict(state.get("class_difficulty"))

    def _rescale(self, factors: Sequence[float]) -> None:
        """Multiply the learning rate of each parameter group; a factor of 1 changes no bit."""
        for group, factor in zip(self._optimizer.param_groups, factors, strict=True):
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
        for name in ("base_lrs", "_last_lr"):
            rates = getattr(self._scheduler, name, None)
            if rates is not None:
                scaled = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
                setattr(self._scheduler, name, scaled)


def _lay_out_alike(optimizer: Optimizer) -> None:
    """Give the state of each weight the weight's own layout in memory.

    A fused step goes through both in memory order, and a checkpoint may come from a run without
    `trainer.channels_last`.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            alike = not isinstance(value, Tensor) or value.stride() == parameter.stride()
            if not alike and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def base_lrs(optimizer: Optimizer) -> list[float]:
    """The learning rates that a new optimiser's schedule starts from, one for each group."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
