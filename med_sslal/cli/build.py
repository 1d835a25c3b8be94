"""From a checked config to built objects: the one place that reads its keys."""

import inspect
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn, optim

from med_sslal.al.abilities import missing_abilities
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.oracle import SimulatedOracle
from med_sslal.al.pool import Pool
from med_sslal.al.restrict import check_groups, check_pool, check_positions, slice_positions
from med_sslal.base.base_dataset import BaseDataset, Images, Labels
from med_sslal.base.base_model import ABILITIES, BaseModel
from med_sslal.base.checkpoint import load_checkpoint, sidecar
from med_sslal.cli.schedule import check_schedule
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.transforms import EvalTransform
from med_sslal.eval.metric import metric_keys
from med_sslal.model.compiling import check_compiler, compile_parts
from med_sslal.model.norm import learns_batch_norm
from med_sslal.model.parallel import ListDataParallel
from med_sslal.model.weights import read_weights
from med_sslal.trainer.settings import TrainerSettings
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import CheckpointError, ConfigError, DeviceError
from med_sslal.utils.train_util import (
    Devices,
    autocast_dtype,
    process_device,
    resolve_devices,
    restrict_visible_devices,
    seed_everything,
)
from med_sslal.utils.util import stable_hash

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_SIZE = 512
ENOUGH_FOR_BATCH_NORM = 8


def devices_of(config: ConfigParser, device: str | None, world: World = ALONE) -> Devices:
    """The devices of this process that `--device`, or else `n_gpu`, means.

    Raises:
        DeviceError: They are not there, or are several under torchrun.
    """
    if world.launched:
        if device not in (None, "cpu", "cuda"):
            raise DeviceError(
                f"--device {device} is for one process, but torchrun starts one for each GPU: "
                f"leave it out and put CUDA_VISIBLE_DEVICES={device} before torchrun"
            )
        wanted = config["n_gpu"] if device is None else {"cpu": 0, "cuda": 1}[device]
        return process_device(wanted, world)
    return resolve_devices(config["n_gpu"] if device is None else restrict_visible_devices(device))


def build_dataset(config: ConfigParser) -> BaseDataset:
    """The data set, checked against the rest of the config.

    Raises:
        ConfigError: Classes, pool size or monitor do not fit the data.
        DataError: The data is missing or damaged.
    """
    dataset: BaseDataset = config.init_obj("dataset")
    dataset.check_num_classes(config.get("arch.args.num_classes"))
    check_monitor(config, dataset)
    return dataset


def check_monitor(config: ConfigParser, dataset: BaseDataset) -> None:
    """Raise ConfigError unless the monitored value is one that validation gives."""
    # Asked in any case: it also tries every metric before hours are spent on a training.
    known = metric_keys(config["metrics"], dataset.labels.class_names)
    rule = config.get("trainer.monitor")
    if rule == "off":
        return
    keys = {"val_loss"} | {f"val_{key}" for key in known}
    key = rule.split()[1]
    if key not in keys:
        raise ConfigError(f"trainer.monitor: no value '{key}'; there are {', '.join(sorted(keys))}")


def build_setup(
    config: ConfigParser,
    dataset: BaseDataset,
    devices: Devices,
    *,
    show_progress: bool,
    world: World = ALONE,
) -> RunSetup:
    """Everything a run is made of.

    Args:
        config: The checked config.
        dataset: What `build_dataset` gave.
        devices: What `devices_of` gave.
        show_progress: Whether trainings report while they run.
        world: The processes of the run.

    Raises:
        ConfigError: Initial set and first query do not fit the pool, the detector does not give
            what the strategy reads, or batch size or schedule do not fit.
    """
    if not issubclass(config.init_class("al_settings"), ActiveLearningHelper):
        raise ConfigError(
            f"al_settings.type: {config.get('al_settings.type')} is no strategy: it must be a "
            f"subclass of {ActiveLearningHelper.__module__}.{ActiveLearningHelper.__name__}"
        )
    helper = config.init_obj("al_settings", seed=config["seed"])
    images, labels = dataset.images, dataset.labels
    _check_pool(helper, images, config.get("al_settings.num_cycles"))
    if config.get("al_settings.num_cycles"):
        check_detector(config, helper)
    pseudo = config.get("ssl_settings.include_pseudolabels")
    n_shares, name = (world.size, "processes") if world.launched else (len(devices.ids), "devices")
    if config["batch_size"] < n_shares:
        raise ConfigError(
            f"batch_size is {config['batch_size']} for {n_shares} {name}: each needs an image at "
            "least, and batch_size is that of all together"
        )
    dtype = autocast_dtype(config.get("trainer.precision"), devices.main)
    if config.get("trainer.compile"):
        if len(devices.ids) > 1:
            raise ConfigError(
                f"trainer.compile is true for {len(devices.ids)} GPUs in one process, whose copies "
                "of the model cannot be compiled: use one GPU, or set it to false"
            )
        check_compiler(devices.main)
    image_size = config["image_size"] or DEFAULT_IMAGE_SIZE
    changes = stable_hash(config["seed"], "augmentation")
    check_schedule(config, helper, len(images.splits["train"]))
    return RunSetup(
        images=images,
        eval_labels=Labels(
            labels.class_names, labels.of((*images.splits["val"], *images.splits["test"]))
        ),
        oracle=SimulatedOracle(labels.of(images.splits["train"])),
        helper=helper,
        labeller=config.init_obj("ssl_settings") if pseudo else None,
        make_model=model_maker(config, dtype),
        parallel=lambda model: _parallel(model, devices),
        make_optimizer=lambda model: _optimizer(config, model),
        make_scheduler=(
            (lambda optimizer: config.init_obj("lr_scheduler", optimizer))
            if config["lr_scheduler"]
            else None
        ),
        train_transform=config.init_obj("augmentation", image_size, seed=changes),
        pseudo_transform=config.init_obj("pseudo_augmentation", image_size, seed=changes),
        eval_transform=EvalTransform(image_size),
        settings=trainer_settings(config, show_progress=show_progress),
        num_cycles=config.get("al_settings.num_cycles"),
        devices=devices,
        dtype=dtype,
        batch_size=config["batch_size"],
        n_workers=config["n_workers"],
        seed=config["seed"],
        metrics=tuple(config["metrics"]),
        keep_checkpoints=config.get("trainer.keep_checkpoints"),
        keep_records=_count(config.get("trainer.keep_records")),
        tensorboard=config.get("trainer.tensorboard"),
        config=config.resolved,
        config_hash=config.digest(),
        world=world,
    )


def training_setup(
    config: ConfigParser,
    dataset: BaseDataset,
    devices: Devices,
    *,
    show_progress: bool,
    world: World = ALONE,
) -> RunSetup:
    """`build_setup` for a run that trains, which batch norm needs enough images for.

    Raises:
        ConfigError: As there, or batch norm would learn from single images.
    """
    setup = build_setup(config, dataset, devices, show_progress=show_progress, world=world)
    # Processes share their statistics, devices of one process do not.
    n_devices = max(len(devices.ids), 1)
    n_images = setup.batch_size // n_devices
    if n_images >= ENOUGH_FOR_BATCH_NORM or not learns_batch_norm(setup.make_model()):
        return setup
    text = (
        f"batch_size {setup.batch_size} gives batch norm {n_images} image(s) a device, and it "
        f"wants {ENOUGH_FOR_BATCH_NORM}: set batch_size to {ENOUGH_FOR_BATCH_NORM * n_devices}, or "
        'arch.args.norm to "group" ("frozen" with pretrained weights)'
    )
    if n_images == 1:
        raise ConfigError(text)
    logger.warning("%s", text)
    return setup


def _check_pool(helper: ActiveLearningHelper, images: Images, num_cycles: int) -> None:
    """Refuse an initial set and a first query that the pool cannot give.

    Raises:
        ConfigError: It has too few images, or too few under the cap per patient; or adjacent
            slices are to be suppressed among no slices.
    """
    pool = Pool((), images.splits["train"])
    n_initial, in_images = helper.n_initial(len(pool)), helper.costs.unit == "images"
    if not num_cycles:
        check_pool(n_initial, 0, len(pool))
        return
    check_pool(n_initial, helper.budget_num if in_images else 1, len(pool))
    check_positions(pool.unlabelled, slice_positions(images.infos), helper.suppress_adjacent)
    if in_images:
        # What a cold start picks is not known yet; more than the whole pool cannot be had.
        left = pool if helper.cold_start else pool.label(helper.initial(pool))
        groups = [images.infos[image_id].group_id for image_id in left.unlabelled]
        check_groups(groups, helper.budget_num, helper.max_per_group)
        enough = math.ceil((len(pool) - n_initial) / helper.budget_num)
        if enough < num_cycles:
            logger.warning(
                "al_settings.num_cycles is %d, but all %d images of the pool are labelled after "
                "%d: the run ends there",
                num_cycles,
                len(pool),
                enough,
            )


def check_detector(config: ConfigParser, helper: ActiveLearningHelper) -> None:
    """Raise ConfigError unless the detector gives what the strategy reads of it."""
    detector, args = config.init_class("arch"), config.get("arch.args")
    gaps = missing_abilities(helper.criterion, helper.selector, detector.abilities(args))
    if not gaps:
        return
    name, need = gaps[0]
    if need == "dropout" and "box_head_dropout" in args:
        raise ConfigError(
            f"al_settings.args.al_criterion: {name} needs arch.args.box_head_dropout above 0 (0.2, "
            f"say), found {args['box_head_dropout']}: set it, or choose another criterion"
        )
    raise ConfigError(
        f"al_settings.args.al_criterion: {name} needs {ABILITIES[need]}, which the detector "
        f"{config.get('arch.type')} does not give: choose another criterion or detector"
    )


def _parallel(model: BaseModel, devices: Devices) -> nn.Module:
    """The model on all devices of the run."""
    return ListDataParallel(model, devices.ids) if len(devices.ids) > 1 else model


def _count(keep: bool | int) -> int:
    """`keep_records` as a number of records."""
    if keep is True:
        return 10**9
    return int(keep)


def _optimizer(config: ConfigParser, model: nn.Module) -> Any:
    """The optimiser over the trainable parameters, fused unless the config says how it steps."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    given = config.get("optimizer.args")
    # The others are slower fused, or not fused on every device.
    can_fuse = config.init_class("optimizer") in (optim.SGD, optim.Adam, optim.AdamW)
    if can_fuse and not given.keys() & {"fused", "foreach", "differentiable"}:
        return config.init_obj("optimizer", parameters, fused=True)
    return config.init_obj("optimizer", parameters)


def trainer_settings(config: ConfigParser, *, show_progress: bool) -> TrainerSettings:
    """The scalars of a training."""
    trainer = config["trainer"]
    names = set(TrainerSettings.__dataclass_fields__) & set(trainer)
    return TrainerSettings(
        **{name: trainer[name] for name in names},
        lr_interval=(config["lr_scheduler"] or {}).get("interval", "epoch"),
        pseudo_weight=config.get("ssl_settings.weight"),
        per_step=config.get("ssl_settings.per_step"),
        show_progress=show_progress,
    )


def model_maker(config: ConfigParser, dtype: torch.dtype | None) -> Callable[[], BaseModel]:
    """A function that makes detectors for a checkpoint's weights to go into.

    Args:
        config: The checked config.
        dtype: Low precision inside the model.
    """
    parameters = inspect.signature(config.init_class("arch")).parameters
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


def initial_weights(config: ConfigParser, init_from: Path | None) -> dict[str, Any]:
    """The weights that every cycle starts from: seeded, pretrained or from a checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged or does not fit the architecture.
    """
    seed_everything(config["seed"], "weights")
    model: BaseModel = config.init_obj("arch")
    if init_from is not None:
        load_weights(model, _weights_file(init_from), init_from)
    return model.state_dict()


def _weights_file(path: Path) -> dict[str, Any]:
    """A checkpoint of this program; without a checksum, any file with a state dict.

    Raises:
        CheckpointError: It is damaged, or neither.
    """
    if sidecar(path).is_file():
        return load_checkpoint(path)
    content = {"model": read_weights(path)}
    logger.warning("%s has no checksum file beside it: it is taken unverified", path)
    return content


def data_difference(content: Mapping[str, Any], setup: RunSetup) -> str | None:
    """How the data of a checkpoint differs from that of a run; None where it does not.

    More labels than before are no difference, other labels of images that it has used are one.
    """
    if "images_fingerprint" not in content:
        return "it is of an older program, which noted images and labels as one"
    fingerprints = setup.fingerprints(
        setup.oracle.label(content.get("pool", {}).get("labelled", ()))
    )
    for name, sentence in (
        ("images_fingerprint", "its images or their split have changed"),
        ("labels_fingerprint", "labels of images that it has used have changed"),
    ):
        if content[name] != fingerprints[name]:
            return sentence
    return None


def load_weights(model: nn.Module, content: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        CheckpointError: It holds none, or those of another architecture.
    """
    if "model" not in content:
        raise CheckpointError(f"{path} holds no model")
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise CheckpointError(
            f"{path} is of another architecture than the config's arch: {' '.join(lines)[:300]}"
        ) from error
