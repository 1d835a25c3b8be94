"""The scalars of a training, as the config gives them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerSettings:
    """The scalars of a training; defaults and meanings stand in the config's schema (`trainer`).

    Attributes:
        keep_records: Their number, whatever the config says it with.
        lr_interval: "epoch" or "step": when the scheduler steps.
        pseudo_weight: Weight of the pseudo-labelled loss after its ramp.
        per_step: Images without labels on top of each batch; None takes as many as labelled ones.
        show_progress: Whether progress is shown.
    """

    epochs: int
    steps_per_cycle: int | None
    val_period: int
    val_steps: int | None
    monitor: str
    early_stop: int
    save_period: int
    checkpoint_seconds: float
    grad_clip: float | None
    accumulate: int
    warmup_steps: int
    ema: bool
    lr_interval: str
    pseudo_weight: float
    per_step: int | None
    show_progress: bool
    keep_checkpoints: str
    keep_records: int
    tensorboard: bool

    @property
    def length(self) -> str:
        """How long a cycle trains, in words."""
        if self.steps_per_cycle is not None:
            return f"{self.steps_per_cycle} steps"
        return f"{self.epochs} epochs"

    def half_life(self, batches: int) -> float:
        """Of a weight in the average, in steps: an epoch or 2 % of a training of such epochs."""
        return max(batches, 0.02 * (self.steps_per_cycle or self.epochs * batches))
