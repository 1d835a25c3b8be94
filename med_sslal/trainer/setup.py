"""What a run is made of, built once from the config and handed to the cycle loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.oracle import SimulatedOracle
from med_sslal.base.base_dataset import Images, Labels
from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Annotation
from med_sslal.ssl.pseudo_labels import PseudoLabeller
from med_sslal.trainer.settings import TrainerSettings
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.train_util import Devices


@dataclass(frozen=True)
class RunSetup:
    """Built objects and scalars of a run.

    Attributes:
        images: Images and their splits.
        eval_labels: Labels of the images of val and test.
        oracle: The only way from a training image to its label.
        helper: Chooses the initial set and every query.
        labeller: Makes pseudo-labels; None trains on labels alone.
        make_model: A new detector with the initial weights, on the CPU.
        parallel: Wraps a detector for several devices (identity for one).
        make_optimizer: From a detector.
        make_scheduler: From an optimiser; None keeps the learning rate.
        train_transform: Augmentation and resizing of labelled images.
        pseudo_transform: The same of pseudo-labelled ones.
        eval_transform: Resizing alone.
        settings: Scalars of a training.
        num_cycles: Queries; there is one training more.
        devices: Where to compute.
        dtype: Low precision inside the model, None for fp32.
        batch_size: Images per step over all devices and processes.
        n_workers: Loader processes of each process.
        seed: Everything random derives from it.
        metrics: Names of METRICS.
        keep_checkpoints: "best", "best_last" or "all".
        keep_records: How many of the newest pool records stay on disk.
        tensorboard: Whether TensorBoard files are written.
        config: The resolved config, saved in every checkpoint.
        config_hash: Its digest.
        world: The processes of the run.
    """

    images: Images
    eval_labels: Labels
    oracle: SimulatedOracle
    helper: ActiveLearningHelper
    labeller: PseudoLabeller | None
    make_model: Callable[[], BaseModel]
    parallel: Callable[[BaseModel], nn.Module]
    make_optimizer: Callable[[BaseModel], Optimizer]
    make_scheduler: Callable[[Optimizer], LRScheduler] | None
    train_transform: Any
    pseudo_transform: Any
    eval_transform: Any
    settings: TrainerSettings
    num_cycles: int
    devices: Devices
    dtype: torch.dtype | None
    batch_size: int
    n_workers: int
    seed: int
    metrics: tuple[str, ...]
    keep_checkpoints: str
    keep_records: int
    tensorboard: bool
    config: Mapping[str, Any]
    config_hash: str
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
