"""What is shown, measured and written while a training runs.

Shape shorthand: B images of a batch, K foreground classes.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from med_sslal.base.base_trainer import BaseTrainer, Hook
from med_sslal.base.training_step import StepOutcome
from med_sslal.logger.progress import Progress, duration
from med_sslal.logger.visualization import TensorboardWriter
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.train_util import peak_memory

logger = logging.getLogger(__name__)

# Of the training difficulty, for a step.
MOMENTUM = 0.99


class ShowProgress(Hook):
    """The progress line of a training such as "cycle 1/3", and a line for each epoch.

    For the time left: so many trainings follow it in its `cycle`, and in the cycles after that.
    Without `show` epochs are for train.log alone.
    """

    def __init__(self, title: str, cycle: int = 0, later: int = 0, *, show: bool = True) -> None:
        self._title, self._left, self._show = title, (cycle, later), show
        self._progress: Progress | None = None
        self._started, self._first_step, self._seen = 0.0, 0, 0

    def before_steps(self, trainer: BaseTrainer) -> None:
        """Open the line of an epoch."""
        if not self._seen:
            self._started, self._first_step = time.monotonic(), trainer.step
        text = f"{self._title} epoch {trainer.epoch + 1}/{trainer.epochs}"
        total = trainer.epoch_batches
        self._progress = Progress(text, total, done=trainer.batch, show=self._show)

    def after_step(self, trainer: BaseTrainer, outcome: StepOutcome) -> None:
        """Count the step."""
        assert self._progress is not None
        self._seen += round(len(outcome.pseudo) / outcome.share) if outcome.share else 0
        self._progress.advance(self._note(trainer) if self._progress.due() else "")

    def after_steps(self, trainer: BaseTrainer) -> None:
        """Close the line."""
        assert self._progress is not None
        self._progress.close()

    def _note(self, trainer: BaseTrainer) -> str:
        losses = ", ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in trainer.mean_losses().items()
            if "/" not in name
        )
        elapsed = time.monotonic() - self._started
        per_step = elapsed / max(trainer.step - self._first_step, 1)
        own, later = (number * per_step * trainer.total_steps for number in self._left)
        cycle = per_step * (trainer.total_steps - trainer.step) + own
        run = cycle + later
        memory = peak_memory(trainer.optimisation.device)
        return (
            f"{losses}, lr {trainer.optimisation.lr:.2g}, "
            f"{self._seen / max(elapsed, 1e-9):.1f} images/s, {memory}, "
            f"cycle {duration(cycle)}, run {duration(run)} left"
        )

    def after_epoch(self, trainer: BaseTrainer, values: Mapping[str, float | None]) -> None:
        """Log the epoch's values, those of the classes apart."""
        validated = {name for name in values if name.startswith("val_")}
        shown_names = {"loss", "lr", "teacher_boxes", *validated}
        shown = ", ".join(
            f"{name} {value:.4g}"
            for name, value in values.items()
            if value is not None and name in shown_names and "/" not in name
        )
        level = logging.INFO if validated and self._show else logging.DEBUG
        text = f"{self._title} epoch {trainer.epoch}/{trainer.epochs}"
        logger.log(level, "%s: %s", text, shown)


class WriteTensorboard(Hook):
    """The values of each epoch, over the steps."""

    def __init__(self, writer: TensorboardWriter) -> None:
        self._writer = writer

    def after_epoch(self, trainer: BaseTrainer, values: Mapping[str, float | None]) -> None:
        """Write them."""
        measured = {k: v for k, v in values.items() if k not in ("epoch", "step")}
        for name, value in trainer.model_facts().get("class_difficulty", {}).items():
            measured[f"difficulty/{name}"] = value
        self._writer.scalars(measured, trainer.step)


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
