"""Parts of a run that take more than a line of the config to make, and weights to put in them."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from med_sslal.al.oracle import Oracle
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.base_model import BaseModel
from med_sslal.base.checkpoint import load_checkpoint, sidecar
from med_sslal.base.settings import TrainerSettings
from med_sslal.base.training_step import TrainingStep
from med_sslal.base.views import VIEWS
from med_sslal.cli.checks import check_monitor
from med_sslal.cli.registries import registries
from med_sslal.config.overrides import Override
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.signature import signature
from med_sslal.data.transforms import EvalTransform
from med_sslal.model.compiling import compile_parts
from med_sslal.model.weights import read_weights
from med_sslal.practice.journal import Journal, read_journal
from med_sslal.practice.oracle import HumanOracle
from med_sslal.study.settings_hash import is_place
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup, Transforms
from med_sslal.trainer.supervised_step import SupervisedStep
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import CheckpointError, ConfigError, DataError, DeviceError
from med_sslal.utils.train_util import (
    Devices,
    process_device,
    resolve_devices,
    restrict_visible_devices,
    seed_everything,
)
from med_sslal.utils.util import read_json, stable_hash

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 512
LABELS = "dataset.args.labels"  # A fingerprint tells whether moved ones are the same.


def devices_of(config: ConfigParser, device: str | None, world: World = ALONE) -> Devices:
    """The devices of this process that `--device`, or else `n_gpu`, means; or DeviceError."""
    if world.launched:
        if device not in (None, "cpu", "cuda"):
            raise DeviceError(
                f"--device {device} is for one process, but torchrun starts one for each GPU: "
                f"leave it out and put CUDA_VISIBLE_DEVICES={device} before torchrun"
            )
        wanted = config["n_gpu"] if device is None else {"cpu": 0, "cuda": 1}[device]
        return process_device(wanted, world)
    return resolve_devices(config["n_gpu"] if device is None else restrict_visible_devices(device))


def moved_config(
    saved: Mapping[str, Any], source: Path, overrides: Sequence[Override]
) -> ConfigParser:
    """The config of a run, whose data may lie elsewhere now; ConfigError of any other change."""
    keys = [".".join(override.path) for override in overrides]
    if others := [key for key in keys if not is_place(key) and key != LABELS]:
        raise ConfigError(
            f"--set: {', '.join(others)} cannot change here, only where the run's data lies, "
            f"dataset.args.root or {LABELS}"
        )
    # Nothing is trained: a compiler that is not there is not missed.
    saved = {**saved, "trainer": {**saved["trainer"], "compile": False}}
    return ConfigParser(saved, registries(), overrides, source=str(source))


def build_dataset(
    config: ConfigParser, split: Mapping[str, Sequence[str]] | None = None
) -> BaseDataset:
    """The data set, checked against the rest of the config: classes, pool size and monitor.

    A run that goes on keeps its `split`, even where labels have come since.
    """
    dataset: BaseDataset = config.init_obj("dataset")
    if split is not None and dataset.images.split_from_labels:
        splits = {name: tuple(ids) for name, ids in split.items()}
        dataset = BaseDataset(dataset.images.with_splits(splits), dataset.labels)
    dataset.check_num_classes(config.get("arch.args.num_classes"))
    check_monitor(config, dataset)
    return dataset


def oracle_of(config: ConfigParser, dataset: BaseDataset, journal: Journal) -> Oracle:
    """The oracle of a run: it alone has the labels of training images, and a person's answers."""
    labels, train = dataset.labels, dataset.images.splits["train"]
    known = labels.of(name for name in train if name in labels.annotations)
    human = issubclass(config.init_class("oracle"), HumanOracle)
    oracle: Oracle = config.init_obj("oracle", known, **({"journal": journal} if human else {}))
    return oracle


def with_answers(dataset: BaseDataset, cycle: CycleFolder) -> BaseDataset:
    """A run's data set with the answers of a person that a cycle stands on, if there are any."""
    names, n_imports = dataset.labels.class_names, read_json(cycle.pool).get("answers", 0)
    answered = read_journal(cycle.run.answers, names).labels(n_imports)
    labels = replace(dataset.labels, annotations={**dataset.labels.annotations, **answered})
    return BaseDataset(dataset.images, labels)


def image_size_of(config: ConfigParser) -> Any:
    """Side or (height, width) of the fixed shape that images are brought to."""
    return config["image_size"] or DEFAULT_IMAGE_SIZE


def build_transforms(config: ConfigParser) -> Transforms:
    """What is done to images, in each view of them with a seed of its own."""
    size, seed = image_size_of(config), config["seed"]
    strong = stable_hash(seed, "augmentation", "strong")
    return Transforms(
        train=config.init_obj("augmentation", size, seed=stable_hash(seed, "augmentation")),
        pseudo=config.init_obj("pseudo_augmentation", size, seed=strong),
        eval=EvalTransform(size),
    )


def initial_weights(config: ConfigParser, init_from: Path | None) -> dict[str, Any]:
    """The weights that every cycle starts from: seeded, pretrained or from a checkpoint."""
    seed_everything(config["seed"], "weights")
    model: BaseModel = config.init_obj("arch")
    if init_from is not None:
        # A checkpoint of this program; without a checksum, any file with a state dict.
        verified = sidecar(init_from).is_file()
        content = load_checkpoint(init_from) if verified else {"model": read_weights(init_from)}
        if not verified:
            logger.warning("%s has no checksum file beside it: it is taken unverified", init_from)
        load_weights(model, content, init_from)
    return model.state_dict()


def data_difference(content: Mapping[str, Any], setup: RunSetup) -> str | None:
    """How the data of a checkpoint differs from that of a run; None where it does not.

    More labels than before are no difference, other labels of images that it has used are one.
    """
    if "images_fingerprint" not in content:
        return "it is of an older program, which noted images and labels as one"
    pool = content.get("pool", {})
    try:
        used = setup.strategy.oracle.label(pool.get("labelled", ()), pool.get("answers", 0))
    except DataError as error:
        return str(error)
    fingerprints = setup.fingerprints(used)
    if content["images_fingerprint"] != fingerprints["images_fingerprint"]:
        return "its images or their split have changed"
    if content["labels_fingerprint"] != fingerprints["labels_fingerprint"]:
        return "labels of images that it has used have changed"
    return None


def load_weights(model: nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a model; CheckpointError where it holds none, or others."""
    if "model" not in content:
        raise CheckpointError(f"{path} holds no model")
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(
            f"{path} is of another architecture than the config's arch: {' '.join(lines)[:300]}"
        ) from error


def detector_maker(config: ConfigParser, dtype: torch.dtype | None) -> Callable[[], BaseModel]:
    """Makes detectors, of low precision `dtype` inside, for a checkpoint's weights to go into."""
    parameters = signature(config.init_class("arch")).arguments
    # Pretrained weights would be read, or even downloaded, to be overwritten at once.
    frame_only = {"load_pretrained": False} if "load_pretrained" in parameters else {}

    def make() -> BaseModel:
        model: BaseModel = config.init_obj("arch", **frame_only)
        model.autocast_dtype = dtype
        if config.get("trainer.channels_last"):
            model.use_channels_last()
        if config.get("trainer.compile"):
            compile_parts(model)
        return model

    return make


def optimizer_of(config: ConfigParser, model: nn.Module) -> Any:
    """The optimiser over the trainable parameters, fused unless the config says how it steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    given = config.get("optimizer.args")
    # The others are slower fused, or not fused on every device.
    can_fuse = config.init_class("optimizer") in (optim.SGD, optim.Adam, optim.AdamW)
    if can_fuse and not given.keys() & {"fused", "foreach", "differentiable"}:
        return config.init_obj("optimizer", parameters, fused=True)
    return config.init_obj("optimizer", parameters)


def step_class(config: ConfigParser) -> type[TrainingStep]:
    """The training step that the config names, or else the supervised one."""
    name = config.get("trainer.type")
    if name is None:
        return SupervisedStep
    cls: type[TrainingStep] = config.init_class("trainer")
    given = dict.fromkeys(field.name for field in fields(TrainingStep))
    try:
        inspect.signature(cls).bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"trainer.type: {name} cannot be made of {', '.join(given)} alone: {error}"
        ) from error
    if wrong := sorted(set(cls.views) - set(VIEWS)):
        raise ConfigError(
            f"trainer.type: {name} asks for the view '{wrong[0]}'; there are {', '.join(VIEWS)}"
        )
    return cls


def trainer_settings(config: ConfigParser, *, show_progress: bool) -> TrainerSettings:
    """The scalars of a training."""
    trainer = config["trainer"]
    if trainer["keep_records"] is True:
        trainer["keep_records"] = 10**9
    return TrainerSettings(
        **trainer,
        lr_interval=(config["lr_scheduler"] or {}).get("interval", "epoch"),
        pseudo_weight=config.get("ssl_settings.weight"),
        per_step=config.get("ssl_settings.per_step"),
        tail=config.get("ssl_settings.tail"),
        teacher_fixed=config.get("ssl_settings.teacher_fixed"),
        show_progress=show_progress,
    )
