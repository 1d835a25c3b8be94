"""The scalars of a training, as the config gives them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainerSettings:
    """The scalars of a training; config keys of the same names under `trainer`.

    Attributes:
        epochs: Epochs of a cycle.
        steps_per_cycle: Overrides `epochs` where given.
        val_period: Epochs between validations.
        val_steps: Overrides `val_period` where given: least steps between validations.
        monitor: "min KEY", "max KEY" or "off".
        early_stop: Epochs without improvement; 0 never stops early.
        save_period: Epochs between numbered checkpoints.
        checkpoint_seconds: Least time between two `checkpoint_last.pth` within a training.
        grad_clip: Largest gradient norm, or None.
        accumulate: Parts of a batch that are computed one after the other.
        warmup_steps: Steps over which the learning rate rises linearly from zero.
        lr_interval: "epoch" or "step": when the scheduler steps.
        pseudo_weight: Weight of the pseudo-labelled loss after its ramp.
        per_step: Pseudo-labelled images on top of each batch; None takes as many as labelled ones.
        show_progress: Whether progress is shown.
    """

    epochs: int
    steps_per_cycle: int | None = None
    val_period: int = 1
    val_steps: int | None = None
    monitor: str = "off"
    early_stop: int = 0
    save_period: int = 0
    checkpoint_seconds: float = 60.0
    grad_clip: float | None = None
    accumulate: int = 1
    warmup_steps: int = 0
    lr_interval: str = "epoch"
    pseudo_weight: float = 1.0
    per_step: int | None = None
    show_progress: bool = True

    @property
    def length(self) -> str:
        """How long a cycle trains, in words."""
        if self.steps_per_cycle is not None:
            return f"{self.steps_per_cycle} steps"
        return f"{self.epochs} epochs"
