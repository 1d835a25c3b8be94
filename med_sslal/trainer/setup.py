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
from med_sslal.al.oracle import SimulatedOracle
from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_dataset import Images, Labels
from med_sslal.base.base_model import BaseModel
from med_sslal.base.settings import TrainerSettings
from med_sslal.base.training_step import TrainingStep
from med_sslal.base.types import Annotation
from med_sslal.config.parse_config import ConfigParser
from med_sslal.model.parallel import ListDataParallel
from med_sslal.ssl.pseudo_labels import PseudoLabeller
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.train_util import Devices


@dataclass(frozen=True)
class Transforms:
    """What is done to an image before the detector sees it.

    Attributes:
        train: Augmentation and resizing of labelled images.
        pseudo: The same of pseudo-labelled ones.
        eval: Resizing alone.
    """

    train: Any
    pseudo: Any
    eval: Any


@dataclass(frozen=True)
class DetectorParts:
    """How the detector and what trains it are made anew in each cycle.

    Attributes:
        model: A detector with weights to be replaced, on the CPU.
        optimizer: From a detector.
        scheduler: From an optimiser; None keeps the learning rate.
        step: What happens in a step.
    """

    model: Callable[[], BaseModel]
    optimizer: Callable[[BaseModel], Optimizer]
    scheduler: Callable[[Optimizer], LRScheduler] | None
    step: type[TrainingStep]


@dataclass(frozen=True)
class Strategy:
    """Where labels come from.

    Attributes:
        helper: Chooses the initial set and every query.
        oracle: The only way from a training image to its label.
        labeller: Makes pseudo-labels; None trains on labels alone.
        num_cycles: Queries; there is one training more.
    """

    helper: ActiveLearningHelper
    oracle: SimulatedOracle
    labeller: PseudoLabeller | None
    num_cycles: int


@dataclass(frozen=True)
class Compute:
    """Where it is computed, and in which pieces.

    Attributes:
        devices: Those of this process.
        dtype: Low precision inside the model, None for fp32.
        batch_size: Labelled images per step over all devices and processes.
        n_workers: Loader processes of each process.
    """

    devices: Devices
    dtype: torch.dtype | None
    batch_size: int
    n_workers: int

    def parallel(self, model: BaseModel) -> nn.Module:
        """A detector on all devices of this process."""
        several = len(self.devices.ids) > 1
        return ListDataParallel(model, self.devices.ids) if several else model

    def loader(self, view: Dataset[Any], sampler: Any) -> BaseDataLoader:
        """The batches of a view, for the devices of this process."""
        on_gpu = self.devices.main.type == "cuda"
        return BaseDataLoader(
            view, batch_sampler=sampler, n_workers=self.n_workers, pin_memory=on_gpu
        )


@dataclass(frozen=True)
class RunSetup:
    """Built objects and scalars of a run.

    Attributes:
        config: The checked config; its resolved form is saved in every checkpoint.
        images: Images and their splits.
        eval_labels: Labels of the images of val and test.
        transforms: What is done to an image.
        detector: How it is made.
        strategy: Where labels come from.
        settings: Scalars of a training, and what is kept of it.
        metrics: Names of METRICS.
        seed: Everything random derives from it.
        compute: Where it is computed.
        world: The processes of the run.
    """

    config: ConfigParser
    images: Images
    eval_labels: Labels
    transforms: Transforms
    detector: DetectorParts
    strategy: Strategy
    settings: TrainerSettings
    metrics: tuple[str, ...]
    seed: int
    compute: Compute
    world: World = ALONE

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names without background."""
        return self.eval_labels.class_names

    def split_labels(self, split: str) -> dict[str, Annotation]:
        """The labels of val or test, in the order of the split."""
        return self.eval_labels.of(self.images.splits[split])

    def fingerprints(self, labels: Mapping[str, Annotation]) -> dict[str, Any]:
        """What tells whether a continuation has the data of before.

        Args:
            labels: Those of the training images that have been used.

        Returns:
            `images_fingerprint`, of the images with their split, and `labels_fingerprint`, of
            `labels` and those of val and test.
        """
        used = {**self.eval_labels.annotations, **labels}
        return {
            "images_fingerprint": self.images.fingerprint(),
            "labels_fingerprint": Labels(self.class_names, used).fingerprint(),
        }
