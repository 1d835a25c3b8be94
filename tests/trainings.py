"""A training of a few images, built without a config."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.amp import GradScaler

from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_dataset import Images
from med_sslal.base.base_model import BaseModel
from med_sslal.base.optimisation import Optimisation
from med_sslal.base.settings import TrainerSettings
from med_sslal.base.types import Annotation
from med_sslal.data.dataset import LabelledView
from med_sslal.data.sampler import EpochBatchSampler
from med_sslal.data.transforms import EvalTransform
from med_sslal.trainer.hooks import ClassDifficulty, ShowProgress
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.supervised_step import SupervisedStep
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.distributed import ALONE
from med_sslal.utils.interrupt import StopRequest


def settings_of(**changes: Any) -> TrainerSettings:
    """The schema's defaults but for some: no early stop, and no file that is not asked for."""
    values = {"monitor": "off", "early_stop": 0, "save_period": 0, "checkpoint_seconds": 0.0}
    return TrainerSettings(**{**values, **changes})


def training_of(
    folder: Path,
    model: BaseModel,
    images: Images,
    ids: Sequence[str],
    optimizer: torch.optim.Optimizer,
    settings: TrainerSettings,
    *,
    labels: Mapping[str, Annotation],
    class_names: Sequence[str],
    side: int,
    batch_size: int,
    n_pseudo: int = 0,
    scheduler: Any = None,
    evaluate: Callable[[int], dict[str, float | None]] = lambda epoch: {},
    stop: StopRequest | None = None,
) -> Trainer:
    """A trainer; the last `n_pseudo` of `ids` are pseudo-labelled."""
    folder.mkdir(exist_ok=True)
    sampler = EpochBatchSampler(len(ids) - n_pseudo, n_pseudo, batch_size, seed=0)
    pseudo = frozenset(ids[len(ids) - n_pseudo :])
    view = LabelledView(images, labels, ids, EvalTransform(side), pseudo)
    half_life, scaler = settings.half_life(len(sampler)), GradScaler("cpu", enabled=False)
    return Trainer(
        CycleFolder(folder),
        training_step=SupervisedStep(
            model=model,
            optimisation=Optimisation(model, optimizer, scheduler, scaler, settings, half_life),
            settings=settings,
            world=ALONE,
        ),
        loader=BaseDataLoader(view, batch_sampler=sampler),
        sampler=sampler,
        evaluate=evaluate,
        stop=stop or StopRequest(),
        identity={"cycle": 0},
        hooks=[
            ClassDifficulty(class_names),
            ShowProgress("", show=settings.show_progress),
        ],
    )
