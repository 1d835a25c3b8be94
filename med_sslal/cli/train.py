"""`python train.py`: a new run, or the continuation of one."""

import logging
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.checkpoint import check_can_go_on, load_checkpoint, newest_good, save_checkpoint
from med_sslal.cli.build import (
    build_dataset,
    data_difference,
    devices_of,
    initial_weights,
    load_weights,
    training_setup,
)
from med_sslal.cli.registries import registries
from med_sslal.cli.report import write_run
from med_sslal.cli.run_folder import environment, resume_command
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.config.show import help_config, print_config
from med_sslal.eval.coco_utils import from_coco_predictions
from med_sslal.logger.logger import add_log_file, remove_log_file, setup_logging
from med_sslal.report.pictures import write_evaluation_pictures, write_learning_curve
from med_sslal.report.table import cycle_table
from med_sslal.study.shared_cycle import check_shared, take_over
from med_sslal.trainer.cycle import run_cycles
from med_sslal.trainer.disk import disk_estimate
from med_sslal.trainer.run_folder import (
    CycleFolder,
    RunFolder,
    filled_first,
    find_run,
    load_named,
    new_run_folder,
    point_to,
)
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.deterministic import deterministic_algorithms
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import CheckpointError, ConfigError, UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.train_util import Devices, peak_memory
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)

DRY_INIT, DRY_BUDGET, DRY_POOL, DRY_EVAL = 4, 2, 12, 4


def train(args: Namespace) -> int:
    """Do what the command line asks for; returns the exit code.

    Raises:
        UserError: Something the user can mend.
    """
    if args.help_config:
        sys.stdout.write(help_config(registries()))
        return 0
    if args.resume is not None:
        return _resume(args)
    config = ConfigParser.from_file(args.config, registries(), args.overrides)
    if args.print_config:
        sys.stdout.write(print_config(config))
        return 0
    world = World.from_environment()
    setup_logging(config.get("trainer.verbosity"), leads=world.is_main)
    devices = devices_of(config, args.device, world)
    if config["n_gpu"] == "auto" and args.device is None and not devices.ids:
        logger.info('n_gpu is "auto" and there is no GPU: training on the CPU')
    gpus = bool(devices.ids)
    with deterministic_algorithms(config["deterministic"]), world.joined(gpus=gpus):
        return _start(args, config, devices, world)


def _start(args: Namespace, config: ConfigParser, devices: Devices, world: World) -> int:
    """Begin a new run."""
    init_from = args.init_from and Path(args.init_from)
    dataset = world.local_first(lambda: build_dataset(config))
    if args.dry_run:
        return _dry_run(config, dataset, devices, init_from, world)
    setup = training_setup(config, dataset, devices, show_progress=world.is_main, world=world)
    if not world.is_main:
        return _help(setup)
    run = RunFolder(_new_run(args, config, setup, init_from))
    return _run(run, setup, devices)


def _new_run(
    args: Namespace, config: ConfigParser, setup: RunSetup, init_from: Path | None
) -> Path:
    """Make the folder of a new run, with all that it starts from."""
    source = args.cycle0_from and Path(args.cycle0_from)
    weights = None
    if source is None:
        weights = initial_weights(config, init_from)
    else:
        run, known = RunFolder(source), registries()
        check_shared(run, config, known, lambda content: data_difference(content, setup))
    save_dir = Path(config.get("trainer.save_dir"))
    folder = new_run_folder(save_dir, config["name"], args.run_id, config["seed"])
    with filled_first(folder) as partial:
        new = RunFolder(partial)
        if weights is not None:
            _save_initial(new.initial, setup, weights, init_from)
        else:
            take_over(RunFolder(source), new)
        write_json(new.split, {name: list(ids) for name, ids in setup.images.splits.items()})
        write_json(new.config, config.resolved)
    try:
        point_to(save_dir, folder)
    except UserError:
        shutil.rmtree(folder)
        raise
    return folder


def _help(setup: RunSetup) -> int:
    """Compute what rank 0 asks for; returns the exit code."""
    with StopRequest() as stop:
        run_cycles(setup, RunFolder(Path()), stop)
    return 0


def _save_initial(
    path: Path, setup: RunSetup, weights: Mapping[str, Any], init_from: Path | None
) -> None:
    """Write the weights that every cycle starts from."""
    identity = {
        **setup.fingerprints({}),
        "class_names": setup.class_names,
        "init_from": init_from,
    }
    save_checkpoint(path, {"model": weights, **identity})


def _run(run: RunFolder, setup: RunSetup, devices: Devices) -> int:
    """Run the cycles of a run; returns the exit code."""
    handler = add_log_file(run.log)
    try:
        run.clear_unfinished()
        write_json(run.config, setup.config)
        logger.info("run folder: %s", run)
        logger.info("%s", disk_estimate(run.initial, setup))
        several = f" x {setup.world.size}" if setup.world.size > 1 else ""
        found = environment(f"{devices}{several}", torch.get_num_threads())
        _warn_of_changes(run.environment, found)
        write_json(run.environment, found)
        started = time.monotonic()
        with StopRequest() as stop:
            rows = run_cycles(setup, run, stop)
            # Seconds, with nothing left to go on with: a request to stop waits for their end.
            _write_pictures(run, setup, rows)
            sys.stdout.write(cycle_table(rows) + "\n")
            minutes = (time.monotonic() - started) / 60
            memory = peak_memory(devices.main)
            logger.info("finished after %.1f minutes; peak memory %s", minutes, memory)
            logger.info("results: %s", run)
            seen = _seen(run.cycle(rows[-1]["cycle"]), setup)
            # Last, when everything else is on disk: an error in it loses nothing of the run.
            sys.stdout.write(f"report: {write_run(run, seen)}\n")
    except Interrupted as request:
        logger.debug("%s", request)
        # Not logged: it is told at every verbosity.
        sys.stdout.write(f"stopped; go on with: {resume_command(run.path, setup.world)}\n")
        return request.exit_code
    except Exception as error:
        logger.debug("ended by an error", exc_info=True)
        # A damaged checkpoint would stop the continuation again; its error says what to remove.
        if isinstance(error, UserError | OSError) and not isinstance(error, CheckpointError):
            command = resume_command(run.path, setup.world)
            sys.stdout.write(f"what is done is kept; go on with: {command}\n")
        raise
    finally:
        remove_log_file(handler)
    return 0


def _seen(cycle: CycleFolder, setup: RunSetup) -> BaseDataset:
    """The images of a run with the labels that it has used: what its report may show."""
    bought = setup.oracle.label(read_json(cycle.pool)["labelled"])
    labels = {**bought, **setup.eval_labels.annotations}
    return BaseDataset(setup.images, Labels(setup.class_names, labels))


def _write_pictures(run: RunFolder, setup: RunSetup, rows: list[dict[str, Any]]) -> None:
    """The learning curve, and the last cycle's FROC and overlays, in the run folder."""
    images, name = setup.images, setup.config["name"]
    write_learning_curve(run.path, rows, images, f"{name}: test")
    cycle = run.cycle(rows[-1]["cycle"])
    write_evaluation_pictures(
        run.path,
        read_json(cycle.metrics)["test"],
        from_coco_predictions(read_json(cycle.predictions), setup.class_names),
        setup.split_labels("test"),
        images,
        setup.class_names,
        f"{name}: test, cycle {cycle.number}",
    )


def _warn_of_changes(path: Path, found: Mapping[str, Any]) -> None:
    """Warn where a resumed run meets another environment: the numbers may differ."""
    if path.exists():
        before = read_json(path)
        for name in sorted(before.keys() & found.keys()):
            if before[name] != found[name]:
                logger.warning(
                    "%s was %s and is now %s: the continuation may differ from an unbroken run",
                    name,
                    before[name],
                    found[name],
                )


def _resume(args: Namespace) -> int:
    """Continue a run in its own folder, which only rank 0 touches."""
    world = World.from_environment()
    with world.joined(gpus=args.device != "cpu"):
        run, checkpoint = world.from_main(lambda: find_run(args.resume, _save_dir(args)))
        named = _named_checkpoint(run, checkpoint) if checkpoint and world.is_main else None
        saved, source = world.from_main(lambda: read_json(run.config)), str(run.config)
        config = ConfigParser.from_dict(saved, registries(), args.overrides, source=source)
        if args.print_config:
            sys.stdout.write(print_config(config) if world.is_main else "")
            return 0
        setup_logging(config.get("trainer.verbosity"), leads=world.is_main)
        before = ConfigParser.from_dict(saved, registries(), source=source)
        _apply_resume_policy(before.resolved, config)
        devices = devices_of(config, args.device, world)
        with deterministic_algorithms(config["deterministic"]):
            return _go_on(run, checkpoint, named, config, devices, world)


def _go_on(
    run: RunFolder,
    checkpoint: Path | None,
    named: dict[str, Any] | None,
    config: ConfigParser,
    devices: Devices,
    world: World,
) -> int:
    """Continue a run whose config is checked."""
    dataset = world.local_first(lambda: build_dataset(config))
    initial = _load_initial(run.initial) if world.is_main else None
    setup = training_setup(config, dataset, devices, show_progress=world.is_main, world=world)
    if not world.is_main:
        return _help(setup)
    for path, content in ((run.initial, initial), (checkpoint, named)):
        if path is not None and content is not None:
            check_can_go_on(content, path)
            _check_fits(path, content, setup)
    if checkpoint is not None and named is not None:
        _check_furthest(run, checkpoint, named)
    _check_newest(run, setup)
    logger.info("resuming %s", run)
    return _run(run, setup, devices)


def _save_dir(args: Namespace) -> Path:
    """Where `latest` is looked for: the default, or what `--set trainer.save_dir` says."""
    given = [
        override.value for override in args.overrides if override.path == ("trainer", "save_dir")
    ]
    return Path(str(given[-1]) if given else "exp_results")


def _load_initial(path: Path) -> dict[str, Any]:
    """The weights that every cycle of a run starts from.

    Raises:
        CheckpointError: They are damaged or missing, and nothing can stand in for them.
    """
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: every cycle starts from it, so put back a copy with its .sha256 file, or "
            "start a new run"
        ) from error


def _apply_resume_policy(saved: Mapping[str, Any], config: ConfigParser) -> None:
    """Log free changes, warn of risky ones.

    Raises:
        ConfigError: A change that would make the run's curve no result.
    """
    free, warned, refused = compare_for_resume(saved, config.resolved)
    if refused:
        raise ConfigError(
            "\n".join(
                f"{path} was {old!r} and cannot become {new!r} in a resumed run: start a new one"
                for path, old, new in refused
            )
        )
    for path, old, new in free:
        logger.info("%s: %r -> %r", path, old, new)
    for path, old, new in warned:
        logger.warning("%s: %r -> %r; the run is no longer of one piece", path, old, new)


def _named_checkpoint(run: RunFolder, path: Path) -> dict[str, Any]:
    """The content of the checkpoint that was named.

    Raises:
        CheckpointError: It is no good checkpoint, holds no training state, or lies in no run.
    """
    content = load_named(path)
    if "state" not in content:
        raise CheckpointError(
            f"{path} holds a model but no training state: resume the run folder, or "
            "start a new run from it with --init-from"
        )
    if not run.exists:
        raise CheckpointError(
            f"{path} lies in no run folder ({run} has no {run.config.name}): start a new run from "
            "it with --init-from"
        )
    return content


def _check_fits(path: Path, content: Mapping[str, Any], setup: RunSetup) -> None:
    """Refuse to continue on other data or with another architecture.

    Raises:
        CheckpointError: Images, split, labels or the shapes of the weights differ.
    """
    if (difference := data_difference(content, setup)) is not None:
        raise CheckpointError(
            f"the data is not that of {path}: {difference}; give the run its own again, or start a "
            "new one with --init-from"
        )
    load_weights(setup.make_model(), content, path)


def _check_newest(run: RunFolder, setup: RunSetup) -> None:
    """Refuse to continue where labels have changed that the furthest training has used.

    Raises:
        CheckpointError: They have.
    """
    for cycle in reversed(run.cycles()):
        try:
            path, content, _ = newest_good([*cycle.resumable(), cycle.best])
        except CheckpointError:
            # Whoever needs a damaged one tells of it.
            continue
        _check_fits(path, content, setup)
        return


def _check_furthest(run: RunFolder, path: Path, named: Mapping[str, Any]) -> None:
    """A checkpoint that was named must be the furthest good one of its run.

    Raises:
        CheckpointError: The run has gone on past it.
    """
    cycles = run.cycles()
    candidates = cycles[-1].resumable() if cycles else []
    if not candidates:
        return
    _, newest, _ = newest_good(candidates)
    reached, furthest = (
        tuple(content[name] for name in ("cycle", "epoch", "batch")) for content in (named, newest)
    )
    if reached < furthest:
        raise CheckpointError(
            f"the run has gone on past {path}: resume the folder {run}, or start a "
            " new run from the checkpoint with --init-from"
        )


def _dry_run(
    config: ConfigParser,
    dataset: BaseDataset,
    devices: Devices,
    init_from: Path | None,
    world: World,
) -> int:
    """One training step, one validation, one scoring and selection on a handful of images."""
    setup = training_setup(config, dataset, devices, show_progress=False, world=world)
    sizes = {"train": DRY_POOL, "val": DRY_EVAL, "test": DRY_EVAL}
    splits = {name: ids[: sizes[name]] for name, ids in setup.images.splits.items()}
    n_initial = max(1, min(DRY_INIT, len(splits["train"]) - 1))
    small = replace(
        setup,
        images=setup.images.with_splits(splits),
        helper=setup.helper.handful(n_initial, DRY_BUDGET),
        settings=replace(setup.settings, steps_per_cycle=1),
        num_cycles=min(1, setup.num_cycles),
        tensorboard=False,
        n_workers=0,
    )
    if not world.is_main:
        return _help(small)
    with tempfile.TemporaryDirectory() as name, StopRequest() as stop:
        run = RunFolder(Path(name))
        _save_initial(run.initial, small, initial_weights(config, init_from), init_from)
        rows = run_cycles(small, run, stop)
    sys.stdout.write(
        f"dry run: {len(rows)} training(s) of one step went through; nothing is left\n"
    )
    return 0
