"""The scalars of a training, as the config gives them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerSettings:
    """The scalars of a training; their defaults stand in the config's schema alone.

    Attributes:
        epochs: Epochs of a cycle.
        steps_per_cycle: Overrides `epochs` where given.
        val_period: Epochs between validations.
        val_steps: Overrides `val_period` where given: least steps between validations.
        monitor: "min KEY", "max KEY" or "off".
        early_stop: Epochs without improvement; 0 never stops early.
        save_period: Epochs between numbered checkpoints; 0 writes none.
        checkpoint_seconds: Least time between two `checkpoint_last.pth` within a training; 0
            writes one after every epoch, and none within.
        grad_clip: Largest gradient norm, or None.
        accumulate: Parts of a batch that are computed one after the other.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        ema: Whether the average of the weights is validated, kept and scored with.
        lr_interval: "epoch" or "step": when the scheduler steps.
        pseudo_weight: Weight of the pseudo-labelled loss after its ramp.
        per_step: Images without labels on top of each batch; None takes as many as labelled ones.
        show_progress: Whether progress is shown.
        keep_checkpoints: "best", "best_last" or "all".
        keep_records: How many of the newest pool records are kept.
        tensorboard: Whether TensorBoard files are written.
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
