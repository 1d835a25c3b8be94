"""What a run is made of, built once from the config and handed to the cycle loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.oracle import Oracle
from med_sslal.base.base_data_loader import BaseDataLoader, collate
from med_sslal.base.base_dataset import Images, Labels
from med_sslal.base.base_model import BaseModel
from med_sslal.base.settings import TrainerSettings
from med_sslal.base.training_step import TrainingStep
from med_sslal.base.types import Annotation
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.schema import SslKeys
from med_sslal.model.parallel import ListDataParallel
from med_sslal.ssl.pseudo_labels import PseudoLabeller
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.train_util import Devices


@dataclass(frozen=True)
class Transforms:
    """What is done to an image before the detector sees it."""

    train: Any  # Augmentation and resizing of labelled images.
    pseudo: Any  # The same of pseudo-labelled ones.
    eval: Any  # Resizing alone.


@dataclass(frozen=True)
class DetectorParts:
    """How the detector and what trains it are made anew in each cycle."""

    model: Callable[[], BaseModel]  # Of weights to be replaced, on the CPU.
    optimizer: Callable[[BaseModel], Optimizer]
    scheduler: Callable[[Optimizer], LRScheduler] | None  # None keeps the learning rate.
    step: type[TrainingStep]  # What happens in a step.


@dataclass(frozen=True)
class Strategy:
    """Where labels come from."""

    helper: ActiveLearningHelper  # Chooses the initial set and every query.
    oracle: Oracle  # The only way from a training image to its label.
    labeller: PseudoLabeller | None  # None trains on labels alone.
    ssl: SslKeys  # How the student of a cycle learns, where there is a labeller.
    num_cycles: int  # Queries; there is one training more.

    @property
    def mean_teacher(self) -> bool:
        """Whether a student learns from a mean teacher."""
        return self.labeller is not None and self.ssl.mode == "mean_teacher"


@dataclass(frozen=True)
class Compute:
    """Where it is computed, and in which pieces."""

    devices: Devices  # Those of this process.
    dtype: torch.dtype | None  # Low precision inside the model, None for fp32.
    batch_size: int  # Labelled images per step over all devices and processes.
    n_workers: int  # Loader processes of each process.

    def parallel(self, model: BaseModel) -> nn.Module:
        """A detector on all devices of this process."""
        several = len(self.devices.ids) > 1
        return ListDataParallel(model, self.devices.ids) if several else model

    def loader(
        self, view: Dataset[Any], sampler: Any, collate_fn: Callable[..., Any] = collate
    ) -> BaseDataLoader:
        """The batches of a view, for the devices of this process."""
        return BaseDataLoader(
            view,
            batch_sampler=sampler,
            n_workers=self.n_workers,
            pin_memory=self.devices.main.type == "cuda",
            collate_fn=collate_fn,
        )


@dataclass(frozen=True)
class RunSetup:
    """Built objects and scalars of a run."""

    config: ConfigParser  # Checked; its resolved form is saved in every checkpoint.
    images: Images
    eval_labels: Labels  # Of the images of val and test.
    transforms: Transforms
    detector: DetectorParts
    strategy: Strategy
    settings: TrainerSettings  # Scalars of a training, and what is kept of it.
    metrics: tuple[str, ...]  # Names of METRICS.
    seed: int  # Everything random derives from it.
    compute: Compute
    world: World = ALONE
    # The initial set of a run that has begun with what had a label then.
    begun_with: tuple[str, ...] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names without background."""
        return self.eval_labels.class_names

    @property
    def n_initial(self) -> int:
        """Images of the initial set."""
        helper = self.strategy.helper
        if helper.starts_labelled:
            return len(self.labelled_first)
        return helper.n_initial(len(self.images.splits["train"]))

    @property
    def labelled_first(self) -> tuple[str, ...]:
        """The training images that have a label from the start."""
        if self.begun_with is not None:
            return self.begun_with
        return self.strategy.oracle.known(self.images.splits["train"])

    def split_labels(self, split: str) -> dict[str, Annotation]:
        """The labels of val or test, in the order of the split."""
        return self.eval_labels.of(self.images.splits[split])

    def fingerprints(self, labels: Mapping[str, Annotation]) -> dict[str, Any]:
        """What tells whether a continuation has the data of before.

        `images_fingerprint` is of the images with their split, and `labels_fingerprint` of the
        `labels` of the training images that have been used and those of val and test.
        """
        used = {**self.eval_labels.annotations, **labels}
        return {
            "images_fingerprint": self.images.fingerprint(),
            "labels_fingerprint": Labels(self.class_names, used).fingerprint(),
        }
