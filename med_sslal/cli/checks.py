"""Whether the parts of a run fit each other; every error names the keys to change."""

import logging
import math
from collections.abc import Sequence

from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.restrict import check_groups, check_pool, check_positions, slice_positions
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.base_model import ABILITIES
from med_sslal.base.learning_rate import tail_start
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.coco import COCO
from med_sslal.data.image_folder import ImageFolder
from med_sslal.data.pictures import PictureImages
from med_sslal.data.sampler import EpochBatchSampler
from med_sslal.data.voc import PascalVOC
from med_sslal.eval.metric import metric_keys
from med_sslal.model.compiling import check_compiler
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.norm import learns_batch_norm
from med_sslal.practice.oracle import HumanOracle
from med_sslal.trainer.setup import RunSetup
from med_sslal.trainer.student import gate_metric
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.names import unknown

logger = logging.getLogger(__name__)

ENOUGH_FOR_BATCH_NORM = 8


def check_monitor(config: ConfigParser, dataset: BaseDataset) -> None:
    """Raise ConfigError unless the monitored value is one that validation gives."""
    # Asked in any case: it also tries every metric before hours are spent on a training.
    known = metric_keys(config["metrics"], dataset.labels.class_names)
    keys = sorted({"val_loss"} | {f"val_{key}" for key in known})
    rule = config.get("trainer.monitor")
    key = rule.split()[-1]
    if rule != "off" and key not in keys:
        raise ConfigError(f"trainer.monitor: no value '{key}'; there are {', '.join(keys)}")


def check_setup(setup: RunSetup) -> None:
    """Refuse parts that do not fit each other: pool and strategy, detector, batches, schedule."""
    config, devices, world = setup.config, setup.compute.devices, setup.world
    helper, num_cycles = setup.strategy.helper, setup.strategy.num_cycles
    pool = setup.images.splits["train"]
    _check_labels(setup, pool)
    if isinstance(setup.strategy.oracle, HumanOracle):
        _check_human(setup, setup.strategy.oracle)
    elif helper.starts_labelled:
        pool = setup.strategy.oracle.known(pool)
    n_initial = setup.n_initial
    _check_pool(setup, pool, n_initial)
    _check_untils(setup)
    if setup.strategy.labeller is not None and setup.strategy.ssl.gate:
        gate_metric(setup.metrics, setup.strategy.ssl.gate_metric, setup.class_names)
    _check_student(setup, n_initial)
    if num_cycles:
        _check_abilities(config, helper)
    n_shares, name = (world.size, "processes") if world.launched else (len(devices.ids), "devices")
    if setup.compute.batch_size < n_shares:
        raise ConfigError(
            f"batch_size is {setup.compute.batch_size} for {n_shares} {name}: each needs an image "
            "at least, and batch_size is that of all together"
        )
    if config.get("trainer.compile"):
        if len(devices.ids) > 1:
            raise ConfigError(
                f"trainer.compile is true for {len(devices.ids)} GPUs in one process, whose copies "
                "of the model cannot be compiled: use one GPU, or set it to false"
            )
        check_compiler(devices.main)
    _check_schedule(setup, len(pool), n_initial)


def check_batch_norm(setup: RunSetup) -> None:
    """Refuse to train where batch norm would learn from single images, warn where from few.

    And where it would learn from the strong views of a student beside the labelled images.
    """
    if not learns_batch_norm(setup.detector.model()):
        return
    if setup.strategy.labeller is not None:
        logger.warning(
            "ssl_settings.include_pseudolabels: the strong views of the student change the "
            "statistics of batch norm, and so what it makes of labelled images: set "
            'arch.args.norm to "group" ("frozen" with pretrained weights)'
        )
    # Processes share their statistics, devices of one process do not.
    batch_size, n_devices = setup.compute.batch_size, max(len(setup.compute.devices.ids), 1)
    n_images = batch_size // n_devices
    if n_images >= ENOUGH_FOR_BATCH_NORM:
        return
    text = (
        f"batch_size {batch_size} gives batch norm {n_images} image(s) a device, and it "
        f"wants {ENOUGH_FOR_BATCH_NORM}: set batch_size to {ENOUGH_FOR_BATCH_NORM * n_devices}, or "
        'arch.args.norm to "group" ("frozen" with pretrained weights)'
    )
    if n_images == 1:
        raise ConfigError(text)
    logger.warning("%s", text)


def _check_student(setup: RunSetup, n_initial: int) -> None:
    """Refuse a student that learns nothing but labels, warn where there will be none."""
    ssl, settings = setup.strategy.ssl, setup.settings
    if setup.strategy.labeller is None:
        if ssl.mode != "offline":
            logger.warning(
                f'ssl_settings.mode is "{ssl.mode}", but include_pseudolabels is false: the run '
                "trains on labels alone"
            )
        return
    train = setup.images.splits["train"]
    if ssl.oracle and len(setup.strategy.oracle.known(train)) < len(train):
        raise ConfigError(
            "ssl_settings.oracle asks for a truth that some training images do not have: set it to "
            "false"
        )
    batches = EpochBatchSampler(n_initial, 0, setup.compute.batch_size * settings.accumulate, 0)
    steps, half_life = settings.steps(len(batches)), settings.half_life(len(batches))
    tail = tail_start(steps, settings.tail)
    # The weight of the first step is 0. A single one is no training, but may be tried.
    if tail < min(2, steps):
        raise ConfigError(
            f"ssl_settings.tail {settings.tail} leaves the student nothing but labels in a "
            f"training of {steps} steps, the first of which has weight 0: set it lower, or train "
            "longer"
        )
    if setup.strategy.mean_teacher:
        _check_teacher(setup, n_initial)
        begins = max(settings.teacher_fixed * steps, half_life)
        if settings.teacher_fixed < 1 and begins >= tail:
            raise ConfigError(
                f"ssl_settings.teacher_fixed {settings.teacher_fixed}: the student's average would "
                f"teach from step {math.ceil(begins)} on, after half-life of {half_life:g} steps, "
                f"but ssl_settings.tail begins at step {tail}: set either lower, or "
                "teacher_fixed to 1.0 for a teacher that stays as it is"
            )
    elif n_initial == len(train):
        logger.warning(
            "ssl_settings.include_pseudolabels: all training images are labelled, so that there "
            "is no student"
        )


def _check_teacher(setup: RunSetup, n_initial: int) -> None:
    """Refuse a mean teacher that cannot work, or has nothing to do, in the first cycle."""
    config, settings, labeller = setup.config, setup.settings, setup.strategy.labeller
    mode = 'ssl_settings.mode "mean_teacher"'
    if not issubclass(config.init_class("arch"), FasterRCNN):
        raise ConfigError(
            f"{mode} needs proposals that teacher and student both look at, which the detector "
            f'{config.get("arch.type")} does not have: take FasterRCNN, or mode "offline"'
        )
    if not settings.ema and settings.teacher_fixed < 1:
        raise ConfigError(
            f"{mode}: its teacher becomes the average of the student's weights: set trainer.ema to "
            "true"
        )
    for name, asked in (
        ("oracle", setup.strategy.ssl.oracle),
        ("args.ignore_unmatched", labeller is not None and labeller.ignore_unmatched),
    ):
        if asked:
            raise ConfigError(f'ssl_settings.{name} goes with mode "offline": set it to false')
    n_unlabelled, n_needed = len(setup.images.splits["train"]) - n_initial, setup.world.size
    if n_unlabelled < n_needed:
        raise ConfigError(
            f"{mode} needs {n_needed} unlabelled image(s), one for each process, and "
            f"al_settings.args.init_num leaves {n_unlabelled}: set it lower, or "
            "ssl_settings.include_pseudolabels to false"
        )
    if settings.per_step is not None and settings.per_step * settings.accumulate < n_needed:
        raise ConfigError(
            f"ssl_settings.per_step is {settings.per_step} for {n_needed} processes: each needs an "
            "unlabelled image in every step"
        )


def _check_labels(setup: RunSetup, train: Sequence[str]) -> None:
    """Refuse to go without labels, or to ask for those that some training images do not have."""
    if not setup.eval_labels.annotations:
        raise ConfigError(
            "dataset: no image has a label, but training, validation and test need some: name a "
            "file of labels (dataset.args.labels of ImageFolder)"
        )
    if not any(label.n_objects for label in setup.eval_labels.annotations.values()):
        text = "no image of validation or test has an object, so that no finding can be measured: "
        logger.warning(text + "look whether the labels are the right ones")
    n_missing = len(train) - len(setup.strategy.oracle.known(train))
    missing = f"{n_missing} of {len(train)} training images have no label"
    human = isinstance(setup.strategy.oracle, HumanOracle)
    if n_missing and setup.strategy.num_cycles and not human:
        raise ConfigError(
            f"al_settings.num_cycles is {setup.strategy.num_cycles}, but {missing} and there is "
            'nobody to ask for it: set oracle.type to "human" to ask a person, or this to 0 to '
            "train on the labelled images"
        )
    if n_missing and not setup.strategy.helper.starts_labelled:
        raise ConfigError(
            f'al_settings.args.init_num: {missing}; set it to "labelled" to train on those that '
            "have one"
        )


def _check_human(setup: RunSetup, oracle: HumanOracle) -> None:
    """Refuse to ask a person about what cannot be sent out, or in a run that knows the truth."""
    human = 'oracle.type "human"'
    if not issubclass(setup.config.init_class("dataset"), COCO | PascalVOC | ImageFolder):
        raise ConfigError(
            f"{human} needs a data set of picture files (ImageFolder, COCO, PascalVOC), and "
            f"dataset.type is {setup.config.get('dataset.type')}"
        )
    if not setup.strategy.helper.starts_labelled:
        raise ConfigError(
            f"{human}: the run begins with the images that have a label: set "
            'al_settings.args.init_num to "labelled"'
        )
    assert isinstance(setup.images, PictureImages)
    oracle.beside.check(setup.images)
    if setup.strategy.ssl.oracle:
        raise ConfigError(f"ssl_settings.oracle asks for a truth that {human} does not have")


def _check_pool(setup: RunSetup, train: Sequence[str], n_initial: int) -> None:
    """Refuse an initial set and a first query that the pool cannot give."""
    helper, num_cycles = setup.strategy.helper, setup.strategy.num_cycles
    pool, infos = Pool((), tuple(train)), setup.images.infos
    in_images = helper.costs.unit == "images"
    if not num_cycles:
        check_pool(n_initial, 0, len(pool))
        return
    if helper.starts_labelled and n_initial == len(pool):
        human = isinstance(setup.strategy.oracle, HumanOracle)
        raise ConfigError(
            f"al_settings.args.init_num: all {n_initial} training images have a label, so that "
            '"labelled" leaves none to ask for: set al_settings.num_cycles to 0'
            + ("" if human else ", or give a number of images")
        )
    check_pool(n_initial, helper.budget_num if in_images else 1, len(pool))
    check_positions(pool.unlabelled, slice_positions(infos), helper.suppress_adjacent)
    if in_images:
        # What a cold start picks is not known yet; more than the whole pool cannot be had.
        first = setup.labelled_first if helper.starts_labelled else helper.initial(pool)
        left = pool if helper.cold_start else pool.label(first)
        groups = [infos[image_id].group_id for image_id in left.unlabelled]
        check_groups(groups, helper.budget_num, helper.max_per_group)
        enough = math.ceil((len(pool) - n_initial) / helper.budget_num)
        if enough < num_cycles:
            logger.warning(
                f"al_settings.num_cycles is {num_cycles}, but all {len(pool)} images of the pool "
                f"are labelled after {enough}: the run ends there"
            )


def _check_untils(setup: RunSetup) -> None:
    """Refuse a schedule that waits for a metric which validation does not give."""
    known = sorted(f"val_{key}" for key in metric_keys(setup.config["metrics"], setup.class_names))
    problems = [
        f"al_settings.args.schedule[{number}].until.{name}: {unknown('metric', name, known)}"
        for number, until in enumerate(setup.strategy.helper.untils)
        for name in until
        if name not in known
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _check_abilities(config: ConfigParser, helper: ActiveLearningHelper) -> None:
    """Raise ConfigError unless the detector gives what the strategy reads of it."""
    detector, args = config.init_class("arch"), config.get("arch.args")
    own = config["al_settings"]["args"]
    key = f"al_settings.args.{'schedule' if own.get('schedule') else 'al_criterion'}"
    gaps = helper.missing_abilities(detector.abilities(args))
    if not gaps:
        return
    name, need = gaps[0]
    if need == "dropout" and "box_head_dropout" in args:
        raise ConfigError(
            f"{key}: {name} needs arch.args.box_head_dropout above 0 (0.2, "
            f"say), found {args['box_head_dropout']}: set it, or choose another criterion"
        )
    raise ConfigError(
        f"{key}: {name} needs {ABILITIES[need]}, which the detector "
        f"{config.get('arch.type')} does not give: choose another criterion or detector"
    )


def _check_schedule(setup: RunSetup, pool_size: int, n_initial: int) -> None:
    """Refuse a learning-rate schedule that would break off, do nothing or work backwards."""
    config = setup.config
    if not config["lr_scheduler"]:
        return
    cls, args = config.init_class("lr_scheduler"), config["lr_scheduler"]["args"]
    own_lr = {OneCycleLR: "max_lr", CyclicLR: "base_lr"}.get(cls)
    lr = config["optimizer"]["args"].get("lr")
    if own_lr and lr is not None and args[own_lr] != lr:
        raise ConfigError(
            f"optimizer.args.lr is {lr}, but {cls.__name__} goes by lr_scheduler.args.{own_lr}, "
            f"which is {args[own_lr]}: set both to the same"
        )
    monitor = config.get("trainer.monitor")
    wanted = "min" if monitor == "off" else monitor.split()[0]
    if cls is ReduceLROnPlateau and args.get("mode", "min") != wanted:
        raise ConfigError(
            f'ReduceLROnPlateau follows the monitored value: with trainer.monitor "{monitor}" set '
            f'lr_scheduler.args.mode to "{wanted}"'
        )
    moves = _most_moves(setup, pool_size, n_initial)
    if cls is OneCycleLR:
        end = args.get("total_steps") or args["epochs"] * args["steps_per_epoch"]
        if moves > end:
            raise ConfigError(
                f"OneCycleLR ends after {end} moves (lr_scheduler.args), but a cycle may take "
                f"{moves}: set total_steps to {moves} in a new run, for one that goes on keeps its "
                "schedule and so its length"
            )
    if cls is CosineAnnealingLR and moves > args["T_max"]:
        logger.warning(
            f"CosineAnnealingLR is at its lowest after {args['T_max']} moves (lr_scheduler.args), "
            f"but a cycle may take {moves}, and the learning rate rises again in them: set T_max "
            f"to {moves} in a new run"
        )


def _most_moves(setup: RunSetup, pool_size: int, n_initial: int) -> int:
    """How often the scheduler moves in the longest cycle, at most."""
    settings, helper = setup.settings, setup.strategy.helper
    size = setup.compute.batch_size * settings.accumulate
    more = setup.strategy.num_cycles * helper.costs.most_images(helper.budget_num)
    steps = settings.steps(math.ceil(min(n_initial + more, pool_size) / size))
    if settings.lr_interval == "step":
        return steps
    fewest = max(1, n_initial // size)
    return math.ceil(steps / fewest) if settings.steps_per_cycle else settings.epochs
