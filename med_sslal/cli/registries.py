"""Every registry of the program, handed to ConfigParser."""

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.oracle import SimulatedOracle
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.base_model import BaseModel
from med_sslal.base.learning_rate import ConstantThenCosine
from med_sslal.base.training_step import TrainingStep
from med_sslal.config.torch_types import lr_schedulers, optimizers
from med_sslal.data.dataset import DATASETS
from med_sslal.data.transforms import AUGMENTATIONS
from med_sslal.eval.metric import METRICS
from med_sslal.model.model import MODELS
from med_sslal.phantom.dataset import DeepLesionPhantom
from med_sslal.practice.oracle import HumanOracle
from med_sslal.ssl.pseudo_labels import PseudoLabeller


def registries() -> dict[str, Mapping[str, Any]]:
    """Config section to (name to class); `bases`: section to what a user's class must extend."""
    return {
        "arch": MODELS,
        "dataset": {**DATASETS, "DeepLesionPhantom": DeepLesionPhantom},
        "augmentation": AUGMENTATIONS,
        "pseudo_augmentation": AUGMENTATIONS,
        "optimizer": optimizers(),
        "lr_scheduler": {"ConstantThenCosine": ConstantThenCosine, **lr_schedulers()},
        "al_settings": {"ActiveLearningHelper": ActiveLearningHelper},
        "oracle": {"simulated": SimulatedOracle, "human": HumanOracle},
        "ssl_settings": {"PseudoLabeller": PseudoLabeller},
        "metrics": METRICS,
        "bases": {
            "trainer": TrainingStep,
            "arch": BaseModel,
            "al_settings": ActiveLearningHelper,
            "oracle": SimulatedOracle,
            "dataset": BaseDataset,
            "optimizer": Optimizer,
            "lr_scheduler": LRScheduler,
        },
    }
