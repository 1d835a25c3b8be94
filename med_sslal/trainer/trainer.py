"""The steps of a training: batches in, a step for each, losses out; and its validation.

B images of a batch; an epoch is one pass over the labelled images.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_trainer import BaseTrainer, CheckpointFolder
from med_sslal.base.training_step import StepInput, StepOutcome, TrainingStep
from med_sslal.base.types import Batch
from med_sslal.data.sampler import EpochBatchSampler
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.util import stable_hash

# Before the names of the losses of pseudo-labelled images.
PSEUDO = "pseudo/"
# Steps between two looks at the losses on a GPU: each look waits for the device.
LOSS_CHECK_STEPS = 10


class Trainer(BaseTrainer):
    """Trains one model in one folder.

    The `loader` gives training batches in the order of `sampler`, its batch sampler. `unlabelled`
    are the views that the step asked for, with a RoundSampler each; None or empty where the pool
    has no images for them. `evaluate` is given the finished epochs and returns the `val_` values
    of the kept model; `stop` is checked before every batch. `others` are `identity`, `hooks` and
    `world` of BaseTrainer.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        *,
        training_step: TrainingStep,
        loader: BaseDataLoader,
        sampler: EpochBatchSampler,
        evaluate: Callable[[int], dict[str, float | None]],
        stop: StopRequest,
        unlabelled: Mapping[str, BaseDataLoader] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(folder, training_step=training_step, batches=len(sampler), **others)
        self._loader, self._sampler = loader, sampler
        self._unlabelled = dict(unlabelled or {})
        samplers = [loader.batch_sampler for loader in self._unlabelled.values()]
        self._n_unlabelled = getattr(samplers[0], "per_step", 0) if samplers else 0
        self._evaluate, self._stop = evaluate, stop
        # On the CPU nothing waits for a loss.
        self.loss_check_steps = 1 if self.optimisation.device.type == "cpu" else LOSS_CHECK_STEPS
        self._sums: dict[str, float] = {}
        self._summed = self._pseudo_summed = 0
        self._pending: list[StepOutcome] = []
        self._last_validation = 0

    def train_epoch(self) -> dict[str, float | None]:
        """Train to the end of the epoch; returns mean losses and the learning rate."""
        self.training_step.model.train()
        if self.batch == 0:
            self._sums, self._summed, self._pseudo_summed = {}, 0, 0
        batches = iter(self._begin(self._loader, self._sampler))
        views = {
            name: iter(self._begin(loader, loader.batch_sampler))
            for name, loader in self._unlabelled.items()
        }
        total = self.epoch_batches
        for hook in self.hooks:
            hook.before_steps(self)
        try:
            while self.batch < total:
                try:
                    self.world.check(self._stop)
                except Interrupted:
                    self._settle()
                    raise
                given = self._input(next(batches), {k: next(view) for k, view in views.items()})
                outcome = self.training_step(given)
                self._pending.append(outcome)
                self.batch, self.step = self.batch + 1, self.step + 1
                if len(self._pending) >= self.loss_check_steps:
                    self._settle()
                for hook in self.hooks:
                    hook.after_step(self, outcome)
                if self.save_due():
                    self._settle()
                    self.save_position()
            self._settle()
        finally:
            for hook in self.hooks:
                hook.after_steps(self)
        return {
            **self.mean_losses(),
            **self.training_step.end_epoch(),
            "lr": self.optimisation.lr,
            "epoch": self.epoch + 1,
            "step": self.step,
        }

    def _begin(self, loader: BaseDataLoader, sampler: Any) -> BaseDataLoader:
        """A loader whose sampler is at the place of this training."""
        sampler.set_epoch(self.epoch)
        sampler.set_start(self.batch)
        return loader

    def _input(self, batch: Batch, views: Mapping[str, Batch]) -> StepInput:
        """What the step at the current place is given."""
        n_labelled, n_pseudo = self._sampler.counts(self.batch)
        return StepInput(
            self._moved(batch),
            len(self._sampler.share(self.batch)) > 0,
            n_labelled,
            n_pseudo,
            {name: self._moved(view) for name, view in views.items()},
            self._n_unlabelled,
            self.step,
            self.total_steps,
            self.batch == 0,
        )

    def _moved(self, batch: Batch) -> Batch:
        """The batch on the device, its frames with seeds of their own in this step.

        What is drawn for an image is then the same in whichever process, device or part of the
        batch it is.
        """
        key = ("samples", self._sampler.seed, self.step)
        frames = tuple(
            replace(frame, seed=stable_hash(*key, frame.info.image_id)) for frame in batch.frames
        )
        return replace(batch.to(self.optimisation.device), frames=frames)

    def mean_losses(self) -> dict[str, float | None]:
        """Means over the steps of the epoch so far: the loss, and its parts unweighted.

        Those of pseudo-labelled images, `pseudo/` before their names, are of the steps that had
        any.
        """
        return {
            name: value / (self._pseudo_summed if name.startswith(PSEUDO) else self._summed)
            for name, value in sorted(self._sums.items())
        }

    def _settle(self) -> None:
        """Read the losses of the last steps from the device, and stop at a non-finite one."""
        pending, self._pending = self._pending, []
        for step, outcome in enumerate(pending, self.step - len(pending) + 1):
            value = outcome.loss.item()
            if not math.isfinite(value):
                wrong = [k for k, v in outcome.losses.items() if not v.isfinite().all()]
                raise UserError(
                    f"the loss is {value} at step {step} for the batch of images "
                    f"{', '.join(outcome.image_ids)} ({', '.join(wrong) or 'their sum'}): lower "
                    f"{self._remedy(outcome)}"
                )
            # A stand-in does not count.
            kinds = {"": ~outcome.pseudo, PSEUDO: outcome.pseudo}
            counted = {kind: mask & (outcome.share > 0) for kind, mask in kinds.items()}
            parts = {
                f"{kind}{name}": each[mask].sum().item()
                for kind, mask in counted.items()
                for name, each in outcome.losses.items()
            }
            sizes = [mask.sum().item() for mask in counted.values()]
            total = torch.tensor([value, *sizes, *parts.values()], dtype=torch.float64)
            value, n_labelled, n_pseudo, *sums = self.world.sum(total).tolist()
            values = {"loss": value}
            for name, number in zip(parts, sums, strict=True):
                if n := n_pseudo if name.startswith(PSEUDO) else n_labelled:
                    values[name] = number / n
            for name, number in values.items():
                self._sums[name] = self._sums.get(name, 0.0) + number
            self._summed += 1
            self._pseudo_summed += n_pseudo > 0

    @staticmethod
    def _remedy(outcome: StepOutcome) -> str:
        """What may help where the loss of a step is not finite."""
        if not outcome.pseudo.any():
            return "optimizer.args.lr or set trainer.grad_clip"
        return (
            "ssl_settings.weight or optimizer.args.lr, or set trainer.grad_clip, and go on with "
            "--resume: what was trained on labels alone is kept"
        )

    def validation_due(self) -> bool:
        """Every `val_period` epochs, or `val_steps` steps where given."""
        every = self.settings.val_steps
        if every is None:
            return self.epoch % self.settings.val_period == 0
        return self.step - self._last_validation >= every

    def validate(self) -> dict[str, float | None]:
        """The `val_` values of the kept model as it is."""
        values = self._evaluate(self.epoch)
        self._last_validation = self.step
        return values

    def state_dict(self) -> dict[str, Any]:
        """Running values of the epoch, and when it was validated last."""
        return {
            "sums": self._sums,
            "summed": self._summed,
            "pseudo_summed": self._pseudo_summed,
            "last_validation": self._last_validation,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._sums, self._summed = dict(state["sums"]), state["summed"]
        # What an older program saved has no such losses.
        self._pseudo_summed = state.get("pseudo_summed", 0)
        self._last_validation = state["last_validation"]
