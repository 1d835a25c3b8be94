"""The epoch loop: train, validate, keep the best, stop early, save, resume."""

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Protocol

from med_sslal.base.checkpoint import newest_good, previous, save_checkpoint
from med_sslal.base.monitor import Monitor
from med_sslal.base.training_step import StepOutcome, TrainingStep
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import CheckpointError, UserError
from med_sslal.utils.interrupt import Interrupted
from med_sslal.utils.train_util import random_states, restore_random_states

logger = logging.getLogger(__name__)


class CheckpointFolder(Protocol):
    """Where the checkpoints of a training go: its folder, which exists, and what lies in it."""

    path: Path
    best: Path
    last: Path

    def numbered(self, epoch: int) -> Path:
        """Where the checkpoint of an epoch goes that `save_period` asks for."""

    def resumable(self) -> list[Path]:
        """The checkpoints in it that hold a training state, the furthest first."""


class Hook:
    """Goes along with a training, and is told where it is; a subclass says what it does there."""

    def before_steps(self, trainer: "BaseTrainer") -> None:
        """The steps of an epoch begin, or go on."""

    def after_step(self, trainer: "BaseTrainer", outcome: StepOutcome) -> None:
        """A step was done; `trainer.step` counts it."""

    def after_steps(self, trainer: "BaseTrainer") -> None:
        """The steps of an epoch are over, whatever ended them."""

    def after_epoch(self, trainer: "BaseTrainer", values: Mapping[str, float | None]) -> None:
        """An epoch is over, and validated where that was due."""

    def facts(self) -> dict[str, Any]:
        """Plain values that stand beside the model in every checkpoint, the best one's too."""
        return {}

    def state_dict(self) -> dict[str, Any] | None:
        """What an identical continuation needs."""
        return None

    def load_state_dict(self, state: Any) -> None:
        """Take over what `state_dict` returned."""


@dataclass(eq=False, repr=False)
class BaseTrainer(ABC):
    """One training in one folder.

    A subclass says what an epoch of training and one of validation do; this class owns the order
    of things, the files and the resume.
    """

    folder: CheckpointFolder
    _: KW_ONLY
    training_step: TrainingStep  # with its `optimisation` and `settings`
    batches: int  # of a whole epoch
    # Plain values that every checkpoint carries (config, data fingerprint, cycle, pool).
    identity: Mapping[str, Any]
    hooks: Sequence[Hook] = ()  # what goes along; at most one of a class
    world: World = ALONE  # the processes that train together; rank 0 alone reads and writes files

    def __post_init__(self) -> None:
        self.optimisation = self.training_step.optimisation
        self.settings = self.training_step.settings
        self.monitor = Monitor(self.settings.monitor, self.settings.early_stop)
        # Finished epochs, batches of the epoch after them, and optimiser steps.
        self.epoch = self.batch = self.step = 0
        self._plan()
        self.seconds = 0.0  # spent, over all resumes
        self.history: list[dict[str, float | None]] = []  # the values of each finished epoch
        self._clock = self._saved = time.monotonic()

    def _plan(self) -> None:
        """Epochs and steps at the end: a resumed run may have batches of another size."""
        steps, ended = self.settings.steps_per_cycle, self.epoch * self.batches + self.batch
        self.total_steps = steps or self.step + self.settings.epochs * self.batches - ended
        left = self.total_steps - self.step + self.batch
        self.epochs = self.epoch + math.ceil(left / self.batches)
        self.optimisation.plan(self.total_steps)

    @property
    def epoch_batches(self) -> int:
        """Batches of the current epoch; the last one may be cut short by `steps_per_cycle`."""
        return min(self.batches, self.batch + self.total_steps - self.step)

    @abstractmethod
    def train_epoch(self) -> dict[str, float | None]:
        """Train from `self.batch` to the end of the epoch, counting it and `self.step` up.

        It is called again with all batches done where a stop came during the validation, and must
        return the same values then. Where `save_due` between two batches, it calls `save_position`.
        """

    @abstractmethod
    def validation_due(self) -> bool:
        """Whether the epoch that has just been trained is validated."""

    @abstractmethod
    def validate(self) -> dict[str, float | None]:
        """Values of the validation data, their names with `val_` before them."""

    @abstractmethod
    def mean_losses(self) -> dict[str, float | None]:
        """Means over the steps of the epoch so far."""

    def model_state(self) -> dict[str, Any]:
        """The kept model's state dict, with the same keys for any number of devices."""
        return self.optimisation.kept.state_dict()

    def model_facts(self) -> dict[str, Any]:
        """What the hooks put beside the model in every checkpoint."""
        return {name: value for hook in self.hooks for name, value in hook.facts().items()}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What an identical continuation needs of the subclass."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""

    def train(self) -> None:
        """Run the epochs that are left; afterwards the best model is there.

        Interrupted where a stop was asked for; the last checkpoint then holds the position.
        """
        self._clock = self._saved = time.monotonic()
        try:
            while self.epoch < self.epochs and not self.monitor.exhausted():
                values = self.train_epoch()
                trained, self.epoch, self.batch = self.batch, self.epoch + 1, 0
                best = False
                if self.validation_due() or self.epoch == self.epochs:
                    try:
                        values |= self.validate()
                    except Interrupted:
                        # Back behind the last batch: the continuation validates this epoch first.
                        self.epoch, self.batch = self.epoch - 1, trained
                        raise
                    best = self.monitor.update(self.epoch, values)
                self.optimisation.after_epoch(values.get(self.monitor.key or "val_loss"))
                for hook in self.hooks:
                    hook.after_epoch(self, values)
                self.history.append(values)
                if best:
                    self._save(self.folder.best, with_state=False)
                period = self.settings.save_period
                if period and self.epoch % period == 0:
                    self._save(self.folder.numbered(self.epoch))
                if self.save_due() or not self.settings.checkpoint_seconds:
                    self.save_position()
        except Interrupted:
            self._save(self.folder.last)
            raise
        epoch, best_epoch = self.epoch, self.monitor.best_epoch
        if epoch == self.epochs:
            logger.debug("training ended after %d epochs", epoch)
        else:
            logger.info("stopped early after epoch %d: best was %d", epoch, best_epoch)
        self._save(self.folder.last)

    def save_due(self) -> bool:
        """Whether `checkpoint_seconds` have passed since the position was saved."""
        if not self.settings.checkpoint_seconds:
            return False
        due = self.settings.checkpoint_seconds <= time.monotonic() - self._saved
        return bool(self.world.largest(due)[0])

    def save_position(self) -> None:
        """Write the last checkpoint: what a kill can take is what comes after."""
        self._save(self.folder.last)
        self._saved = time.monotonic()

    def _save(self, path: Path, *, with_state: bool = True) -> None:
        now, model = time.monotonic(), self.model_state()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        # A gradient may be none though its loss is a number.
        if wrong := [name for name, value in model.items() if not value.isfinite().all()]:
            raise UserError(
                f"the weights are not finite after step {self.step} ({wrong[0]}), and are not "
                "saved: lower optimizer.args.lr or set trainer.grad_clip"
            )
        states = self.world.gather(random_states()) if with_state else []
        if not self.world.is_main:
            return
        content = {
            **self.identity,
            "model": model,
            **self.model_facts(),
            "epoch": self.epoch,
            "batch": self.batch,
            "batches": self.batches,
            "step": self.step,
            "seconds": self.seconds,
            "monitor": self.monitor.state_dict(),
            "history": self.history,
        }
        if with_state:
            content["state"] = {
                **self.state_dict(),
                "optimisation": self.optimisation.state_dict(),
                "training_step": self.training_step.state_dict(),
                "hooks": {type(hook).__name__: hook.state_dict() for hook in self.hooks},
            }
            content["random"] = states[0] | ({"others": states[1:]} if states[1:] else {})
        save_checkpoint(path, content)

    def resume(self) -> Path | None:
        """Continue from the newest good checkpoint of the folder, if it holds any; returns which.

        CheckpointError where it holds checkpoints but none that can be used.
        """
        found = self.world.from_main(self._find)
        if found is None:
            return None
        path, content = found
        state = content["state"]
        self.load_state_dict(state)
        self.optimisation.load_state_dict(content["model"], state["optimisation"])
        self.training_step.load_state_dict(state["training_step"])
        for hook in self.hooks:
            hook.load_state_dict(state["hooks"].get(type(hook).__name__))
        states = [content["random"], *content["random"].get("others", ())]
        if len(states) == self.world.size:
            restore_random_states(states[self.world.rank])
        else:
            # Another number of processes than before: all take up rank 0's, whose GPU is the first.
            gpus = states[0]["cuda"]
            restore_random_states({**states[0], "cuda": gpus[:1] * len(gpus)})
        self.monitor.load_state_dict(content["monitor"])
        self.epoch, self.step = content["epoch"], content["step"]
        # In batches of another size the same part of the epoch is done.
        self.batch = content["batch"] * self.batches // content["batches"]
        self._plan()
        self.seconds, self.history = content["seconds"], content["history"]
        return path

    def _find(self) -> tuple[Path, dict[str, Any]] | None:
        candidates = self.folder.resumable()
        if not candidates:
            return None
        try:
            path, content, complaints = newest_good(candidates, self._take_best)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Remove {self.folder.path}: --resume trains this cycle anew"
            ) from error
        for complaint in complaints:
            logger.warning("%s; falling back", complaint)
        return path, content

    def _take_best(self, content: Mapping[str, Any]) -> None:
        """See to it that the best model so far is there: the continuation may find no better one.

        A kill while it was written leaves it as the previous copy. One of a later epoch is as
        good: the continuation comes by that epoch and writes it again.
        """
        epoch, best = content["monitor"]["best_epoch"], self.folder.best
        if not epoch:
            return

        def check(found: Mapping[str, Any]) -> None:
            if found["epoch"] < epoch:
                raise CheckpointError(f"the copy that is good is of epoch {found['epoch']}")

        try:
            path, found, _ = newest_good([best, previous(best)], check)
        except CheckpointError as error:
            raise CheckpointError(
                f"the best model so far, of epoch {epoch}, is lost: {error}"
            ) from error
        if path != best:
            save_checkpoint(best, found)
