"""The scalars of a training, as the config gives them."""

from dataclasses import dataclass

from med_sslal.config.schema import TrainerKeys


@dataclass(frozen=True, kw_only=True)
class TrainerSettings(TrainerKeys):
    """The scalars of a training: `trainer` of the config, and what other sections say of it."""

    lr_interval: str = "epoch"  # or "step": when the scheduler steps
    pseudo_weight: float = 1.0  # weight of the pseudo-labelled loss after its ramp
    per_step: int | None = None  # unlabelled images with each batch; None: as many as labelled ones
    tail: float = 0.0  # share of the steps, the last ones, that see labelled images alone
    teacher_fixed: float = 0.5  # share of the steps in which a mean teacher does not change
    show_progress: bool = False

    @property
    def length(self) -> str:
        """How long a cycle trains, in words."""
        if self.steps_per_cycle is not None:
            return f"{self.steps_per_cycle} steps"
        return f"{self.epochs} epochs"

    def steps(self, batches: int) -> int:
        """Of a training of epochs of so many batches."""
        return self.steps_per_cycle or self.epochs * batches

    def half_life(self, batches: int) -> float:
        """Of a weight in the average, in steps: an epoch or 2 % of a training of such epochs."""
        return max(batches, 0.02 * self.steps(batches))
