"""What happens in one step of a training: a class of its own, exchanged by `trainer.type`.

Shape shorthand: B images of this process's share of a step, K foreground classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from med_sslal.base.optimisation import Optimisation
from med_sslal.base.settings import TrainerSettings
from med_sslal.base.types import Batch
from med_sslal.utils.distributed import World


@dataclass(frozen=True)
class StepInput:
    """What a step is given."""

    batch: Batch  # this process's share of the labelled images, then of the pseudo-labelled ones
    # False where the process has no share and its image is a stand-in: of several processes all
    # must take part in every step.
    counts: bool
    n_labelled: int  # labelled images of the step, in all processes
    n_pseudo: int  # pseudo-labelled ones
    # The views that the step asked for, each a batch of this process's share of the same
    # unlabelled images in the same order; empty where the pool has too few left.
    unlabelled: Mapping[str, Batch]
    n_unlabelled: int  # unlabelled images of the step, in all processes
    number: int  # steps before this one
    total: int  # steps of the training
    first: bool = False  # whether an epoch begins with it


@dataclass(frozen=True)
class StepOutcome:
    """What a step was, for the log; without gradients."""

    image_ids: tuple[str, ...]  # the B images that it trained on
    pseudo: Tensor  # bool [B], where the label is a pseudo-label
    losses: Mapping[str, Tensor]  # name to float32 [B]
    loss: Tensor  # this process's part of the step's loss, a scalar
    share: float  # the part that the B images are of all of the step; 0 where they do not count
    # float32 [B, K, 2], see ModelOutput; None where it was not measured.
    class_quality: Tensor | None = None


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingStep(ABC):
    """One optimiser step after the other; loop, checkpoints and resume know no recipe."""

    views: ClassVar[Sequence[str]] = ()  # the VIEWS of unlabelled images that each step gets
    model: nn.Module  # computes the losses: the detector, or what spreads it over devices
    optimisation: Optimisation  # `optimisation.model` is the detector itself
    settings: TrainerSettings
    world: World  # the processes that train together; gradients are averaged over them

    @abstractmethod
    def __call__(self, given: StepInput) -> StepOutcome:
        """Do one optimiser step; the detector is in training mode."""

    def end_epoch(self) -> dict[str, float | None]:
        """What the log shows of an epoch beside its losses; asked again where a stop came then.

        UserError where the training must not go on.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What an identical continuation needs besides the optimisation; plain values, tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        if state:
            raise NotImplementedError(f"{type(self).__name__} has a state, but cannot load it")
