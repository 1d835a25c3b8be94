"""`python train.py`: config, data, detector, strategy, run, one after the other; or a continuation.

What takes more than a line of the config to make lies in `build`, what refuses it in `checks`, and
the walk through the cycles, a new or a continued one, in `running`.
"""

import logging
import shutil
import sys
import tempfile
from argparse import Namespace
from dataclasses import fields, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.checkpoint import save_checkpoint
from med_sslal.cli.build import (
    build_dataset,
    build_transforms,
    data_difference,
    detector_maker,
    devices_of,
    initial_weights,
    optimizer_of,
    oracle_of,
    step_class,
    trainer_settings,
)
from med_sslal.cli.checks import check_batch_norm, check_setup
from med_sslal.cli.registries import registries
from med_sslal.cli.running import (
    apply_policy,
    check_weights,
    help_main,
    named_checkpoint,
    nothing_left,
    run_in,
    study_of,
)
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.schema import SslKeys
from med_sslal.config.show import help_config, print_config
from med_sslal.logger.logger import setup_logging
from med_sslal.practice.journal import Journal, read_journal
from med_sslal.study.shared_cycle import check_shared, take_over
from med_sslal.trainer.cycle import run_cycles
from med_sslal.trainer.new_folder import filled_first, point_to
from med_sslal.trainer.run_folder import RunFolder, find_run
from med_sslal.trainer.setup import Compute, DetectorParts, RunSetup, Strategy
from med_sslal.utils.arithmetic import arithmetic
from med_sslal.utils.distributed import ALONE, World
from med_sslal.utils.errors import CheckpointError, UserError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.train_util import Devices, autocast_dtype
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)

DRY_INIT, DRY_BUDGET, DRY_POOL, DRY_EVAL = 4, 2, 12, 4


def run(args: Namespace) -> int:
    """Do what the command line asks for; returns the exit code."""
    if args.help_config:
        sys.stdout.write(help_config(registries()))
        return 0
    if args.resume is not None:
        return resume(args)
    config = ConfigParser.from_file(args.config, registries(), args.overrides)
    if args.print_config:
        sys.stdout.write(print_config(config))
        return 0
    if args.init_from is not None and not args.init_from.is_file():
        raise CheckpointError(f"there is no checkpoint {args.init_from}, which --init-from names")
    world = World.from_environment()
    setup_logging(config.get("trainer.verbosity"), leads=world.is_main)
    devices = devices_of(config, args.device, world)
    if config["n_gpu"] == "auto" and args.device is None and not devices.ids:
        logger.info('n_gpu is "auto" and there is no GPU: training on the CPU')
    shown = world.is_main and not args.dry_run
    gpus = bool(devices.ids)
    with arithmetic(deterministic=config["deterministic"]), world.joined(gpus=gpus):
        dataset = world.local_first(lambda: build_dataset(config))
        setup = build_setup(config, dataset, devices, show_progress=shown, world=world)
        check_batch_norm(setup)
        if args.dry_run:
            return dry_run(setup, args.init_from)
        if not world.is_main:
            return help_main(setup)
        return run_in(new_run(args, setup), setup)


def build_setup(
    config: ConfigParser,
    dataset: BaseDataset,
    devices: Devices,
    *,
    show_progress: bool,
    world: World = ALONE,
    run: RunFolder | None = None,
) -> RunSetup:
    """Everything a run is made of; ConfigError where the parts do not fit each other.

    `run` is the folder of a run that has begun, with what a person has answered.
    """
    seed = config["seed"]
    # Data. The labels of training images are the oracle's alone.
    labels, splits = dataset.labels, dataset.images.splits
    journal, begun_with = Journal(), None
    if run is not None:
        journal = world.from_main(lambda: read_journal(run.answers, labels.class_names))
        first = run.cycle(0).pool
        begun = world.from_main(lambda: read_json(first)["labelled"] if first.exists() else None)
        begun_with = None if begun is None else tuple(begun)
    # Detector. Each cycle makes a new one, so this says how.
    dtype = autocast_dtype(config.get("trainer.precision"), devices.main)
    detector = DetectorParts(
        model=detector_maker(config, dtype),
        optimizer=partial(optimizer_of, config),
        scheduler=partial(config.init_obj, "lr_scheduler") if config["lr_scheduler"] else None,
        step=step_class(config),
    )
    # Strategy.
    ssl = SslKeys(**{key.name: config.get(f"ssl_settings.{key.name}") for key in fields(SslKeys)})
    strategy = Strategy(
        helper=config.init_obj("al_settings", seed=seed),
        oracle=oracle_of(config, dataset, journal),
        labeller=config.init_obj("ssl_settings") if ssl.include_pseudolabels else None,
        ssl=ssl,
        num_cycles=config.get("al_settings.num_cycles"),
    )
    setup = RunSetup(
        config=config,
        images=dataset.images,
        eval_labels=Labels(labels.class_names, labels.of(splits["val"] + splits["test"])),
        transforms=build_transforms(config),
        detector=detector,
        strategy=strategy,
        settings=trainer_settings(config, show_progress=show_progress),
        metrics=tuple(config["metrics"]),
        seed=seed,
        compute=Compute(devices, dtype, config["batch_size"], config["n_workers"]),
        world=world,
        begun_with=begun_with,
    )
    check_setup(setup)
    return setup


def new_run(args: Namespace, setup: RunSetup) -> RunFolder:
    """Make the folder of a new run, with all that it starts from."""
    config = setup.config
    source = args.cycle0_from and RunFolder(Path(args.cycle0_from))
    if source is None:
        weights = initial_weights(config, args.init_from)
    else:
        check_shared(source, config, registries(), lambda content: data_difference(content, setup))
    save_dir = Path(config.get("trainer.save_dir"))
    run_id = args.run_id or f"{datetime.now():%Y%m%d_%H%M%S}_s{config['seed']}"
    folder = save_dir / config["name"] / run_id
    with filled_first(folder) as unfinished:
        new = RunFolder(unfinished)
        if source is None:
            save_initial(new, setup, weights, args.init_from)
        else:
            take_over(source, new, config)
        write_json(new.split, {name: list(ids) for name, ids in setup.images.splits.items()})
        write_json(new.config, config.resolved)
    try:
        point_to(save_dir, folder)
    except UserError:
        shutil.rmtree(folder)
        raise
    return RunFolder(folder)


def save_initial(
    run: RunFolder, setup: RunSetup, weights: dict[str, Any], init_from: Path | None
) -> None:
    """Write the weights that every cycle starts from."""
    identity = {"class_names": setup.class_names, "init_from": init_from}
    save_checkpoint(run.initial, {"model": weights, **setup.fingerprints({}), **identity})


def dry_run(setup: RunSetup, init_from: Path | None) -> int:
    """One training step, one validation, one scoring and selection on a handful of images."""
    sizes = {"train": DRY_POOL, "val": DRY_EVAL, "test": DRY_EVAL}
    splits = {name: ids[: sizes[name]] for name, ids in setup.images.splits.items()}
    strategy = setup.strategy
    if strategy.helper.starts_labelled:
        known = strategy.oracle.known(setup.images.splits["train"])
        others = sorted(set(setup.images.splits["train"]) - set(known))
        # Who answers queries is asked about images without a label.
        splits["train"] = (*known[:DRY_POOL], *(others[:DRY_POOL] if strategy.num_cycles else ()))
    n_initial = max(1, min(DRY_INIT, len(splits["train"]) - 1))
    small = replace(
        setup,
        images=setup.images.with_splits(splits),
        strategy=replace(
            strategy,
            helper=strategy.helper.handful(n_initial, DRY_BUDGET),
            num_cycles=min(1, strategy.num_cycles),
        ),
        settings=replace(setup.settings, steps_per_cycle=1, tensorboard=False),
        compute=replace(setup.compute, n_workers=0),
    )
    if not setup.world.is_main:
        return help_main(small)
    with tempfile.TemporaryDirectory() as name, StopRequest() as stop:
        run = RunFolder(Path(name))
        save_initial(run, small, initial_weights(setup.config, init_from), init_from)
        rows = run_cycles(small, run, stop)
    sys.stdout.write(
        f"dry run: {len(rows)} training(s) of one step went through; nothing is left\n"
    )
    return 0


def resume(args: Namespace) -> int:
    """Continue a run in its own folder, which only rank 0 touches."""
    world = World.from_environment()
    with world.joined(gpus=args.device != "cpu"):
        # `latest` is looked for where `--set trainer.save_dir` says.
        said = [each.value for each in args.overrides if each.path == ("trainer", "save_dir")]
        save_dir = Path(str(said[-1]) if said else "exp_results")
        run, checkpoint = world.from_main(lambda: find_run(args.resume, save_dir))
        named = named_checkpoint(run, checkpoint) if checkpoint and world.is_main else None
        saved, source = world.from_main(lambda: read_json(run.config)), str(run.config)
        config = ConfigParser(saved, registries(), args.overrides, source=source)
        if args.print_config:
            sys.stdout.write(print_config(config) if world.is_main else "")
            return 0
        setup_logging(config.get("trainer.verbosity"), leads=world.is_main)
        if config.get("ssl_settings.include_pseudolabels") and "gate" not in saved["ssl_settings"]:
            raise CheckpointError(
                f"{run} is of an older program, which trained each cycle on the pseudo-labels of "
                "the one before and knew no student: start a new run"
            )
        before = ConfigParser(saved, registries(), source=source)
        idle, study = world.from_main(lambda: (nothing_left(run, config), study_of(run)))
        config = apply_policy(run, before, config, study, idle=idle)
        devices = devices_of(config, args.device, world)
        with arithmetic(deterministic=config["deterministic"]):
            split = world.from_main(lambda: read_json(run.split))
            dataset = world.local_first(lambda: build_dataset(config, split))
            shown = world.is_main
            setup = build_setup(config, dataset, devices, show_progress=shown, world=world, run=run)
            check_batch_norm(setup)
            if not world.is_main:
                return help_main(setup)
            check_weights(run, setup, named)
            return run_in(run, setup)
