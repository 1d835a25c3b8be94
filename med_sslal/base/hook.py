"""What goes along with a training without being a part of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from med_sslal.base.training_step import StepOutcome

if TYPE_CHECKING:
    from med_sslal.base.base_trainer import BaseTrainer


class Hook:
    """Is told where a training is; a subclass says what it does there."""

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
