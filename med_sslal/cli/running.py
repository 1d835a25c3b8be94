"""Going through the cycles of a run in its folder, and when a run may go on."""

import logging
import platform
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from med_sslal.al.pool import Pool
from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.checkpoint import check_can_go_on, load_checkpoint, newest_good
from med_sslal.cli.build import LABELS, data_difference, load_weights, trainer_settings
from med_sslal.cli.called import called
from med_sslal.cli.registries import registries
from med_sslal.cli.report import write_run
from med_sslal.cli.status import next_steps
from med_sslal.config.overrides import Override
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.eval.coco_utils import from_coco_predictions
from med_sslal.logger.logger import add_log_file
from med_sslal.report.overlays import write_evaluation_pictures
from med_sslal.report.plots import plot_learning_curve
from med_sslal.report.table import cycle_table
from med_sslal.study.settings_hash import is_place
from med_sslal.study.study_folder import CONFIGS
from med_sslal.trainer.cycle import run_cycles
from med_sslal.trainer.damage import telling_what_to_remove
from med_sslal.trainer.disk import disk_estimate
from med_sslal.trainer.run_folder import CycleFolder, ResultFolder, RunFolder, load_named
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import CheckpointError, ConfigError, DataError, UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.train_util import peak_memory
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "torchvision", "albumentations", "numpy", "scikit-learn", "pycocotools")


def run_in(run: RunFolder, setup: RunSetup) -> int:
    """Run the cycles of a run; returns the exit code."""
    handler = add_log_file(run.log)
    try:
        run.clear_unfinished()
        write_json(run.config, setup.config.resolved)
        logger.info("run folder: %s", run)
        logger.info("%s", disk_estimate(run.initial, setup))
        started, idle = time.monotonic(), nothing_left(run, setup.config)
        with StopRequest() as stop, telling_what_to_remove(run):
            if not idle:
                _note_environment(run, setup)
            rows = run_cycles(setup, run, stop)
            # Seconds, with nothing left to go on with: a request to stop waits for their end.
            _write_pictures(run, setup, rows)
            sys.stdout.write(cycle_table(rows) + "\n")
            if idle:
                sys.stdout.write(_nothing_left(run, setup, rows))
            else:
                minutes = (time.monotonic() - started) / 60
                memory = peak_memory(setup.compute.devices.main)
                done = "finished" if run.finished else "waiting for answers"
                logger.info("%s after %.1f minutes; peak memory %s", done, minutes, memory)
            logger.info("results: %s", run)
            seen = _seen(run.cycle(rows[-1]["cycle"]), setup)
            # Last, when everything else is on disk: an error in it loses nothing of the run.
            sys.stdout.write(f"report: {write_run(run, seen)}\n")
            if not run.finished:
                sys.stdout.write(next_steps(run, resume_command(run.path, setup.world)))
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
        handler.close()
    return 0


def nothing_left(run: RunFolder, config: ConfigParser) -> bool:
    """Whether a run is finished, and a config asks for nothing more that it could still do."""
    try:
        if not run.finished:
            return False
        cycles, n_done = run.begun(), len(run.read_summary()["cycles"])
        whole = [cycle.measured and cycle.queried for cycle in cycles[:-1]]
        if len(cycles) < n_done or not all((*whole, cycles[-1].measured)):
            return False
        last, length = cycles[-1], trainer_settings(config, show_progress=False).length
        # A finished run has made its last query only where that paid for no label.
        can_buy = not last.queried and read_json(last.pool)["unlabelled"]
        if can_buy and last.number < config.get("al_settings.num_cycles"):
            return False
        return last.planned == length or last.closed is not None
    except DataError:
        # The walk makes a damaged file again, or tells of it.
        return False


def _note_environment(run: RunFolder, setup: RunSetup) -> None:
    """Write where a run is computed, and warn of what is no longer as it was."""
    several = f" x {setup.world.size}" if setup.world.size > 1 else ""
    found = environment(f"{setup.compute.devices}{several}", torch.get_num_threads())
    before = read_json(run.environment) if run.environment.exists() else {}
    for name in sorted(before.keys() & found.keys()):
        if before[name] != found[name]:
            logger.warning(
                f"{name} was {before[name]} and is now {found[name]}: the continuation may "
                "differ from an unbroken run"
            )
    write_json(run.environment, found)


def _nothing_left(run: RunFolder, setup: RunSetup, rows: list[dict[str, Any]]) -> str:
    """That a resumed run was at its end already, and how it could go on."""
    text = f"nothing was left to do: the run {run} is finished, with {len(rows)} trainings\n"
    unlabelled = read_json(run.cycle(len(rows) - 1).pool)["unlabelled"]
    if unlabelled and len(rows) > setup.strategy.num_cycles and study_of(run) is None:
        command = resume_command(run.path, setup.world)
        text += f"for one more query: {command} --set al_settings.num_cycles={len(rows)}\n"
    return text


def help_main(setup: RunSetup) -> int:
    """Compute what rank 0 asks for; returns the exit code."""
    with StopRequest() as stop:
        run_cycles(setup, RunFolder(Path()), stop)
    return 0


def _seen(cycle: CycleFolder, setup: RunSetup) -> BaseDataset:
    """The images of a run with the labels that it has used: what its report may show."""
    pool = Pool(**read_json(cycle.pool))
    bought = setup.strategy.oracle.label(pool.labelled, pool.answers)
    labels = {**bought, **setup.eval_labels.annotations}
    return BaseDataset(setup.images, Labels(setup.class_names, labels))


def _write_pictures(run: RunFolder, setup: RunSetup, rows: list[dict[str, Any]]) -> None:
    """The learning curve, and the last cycle's FROC and overlays, in the run folder."""
    images, name = setup.images, setup.config["name"]
    plot_learning_curve(rows, run.learning_curve, f"{name}: test", images.note)
    cycle = run.cycle(rows[-1]["cycle"])
    write_evaluation_pictures(
        ResultFolder(run.path),
        read_json(cycle.metrics)["test"],
        from_coco_predictions(read_json(cycle.predictions), setup.class_names),
        setup.split_labels("test"),
        images,
        setup.class_names,
        f"{name}: test, cycle {cycle.number}",
    )


def resume_command(folder: Path, world: World) -> str:
    """The command line that goes on with a run in as many processes."""
    command = called("train")
    if world.launched:
        script = "train.py" if command.endswith("train.py") else "-m med_sslal train"
        several = f" --standalone --nproc_per_node={world.size}"
        if world.local_size < world.size:
            several = ", on each machine with the options of before,"
        command = f"torchrun{several} {script}"
    return f"{command} --resume {quote(str(folder))}"


def environment(device: str, n_threads: int) -> dict[str, Any]:
    """Versions, processor, device and threads: what can change a run's numbers."""
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": platform.python_version(),
        "packages": versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "gpu": torch.cuda.get_device_name(0) if device.startswith("cuda") else None,
        "threads": n_threads,
    }


def _commit() -> str | None:
    """The commit of the program where it lies in a git repository of its own."""
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        words = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
        with suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    return None


def _cpu_name() -> str:
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"^model name[ \t]*:(.*)", text, re.MULTILINE):
            return found[1].strip()
    return platform.processor() or platform.machine()


def named_checkpoint(run: RunFolder, path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that was named, with its content: it must hold a state, and lie in a run."""
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
    return path, content


def study_of(run: RunFolder) -> Path | None:
    """The folder of the study that started a run; None where none did."""
    arm, study = run.path.parent, run.path.parent.parent
    return study if (study / CONFIGS / f"{arm.name}_{run.path.name}.json").is_file() else None


def apply_policy(
    run: RunFolder, before: ConfigParser, config: ConfigParser, study: Path | None, *, idle: bool
) -> ConfigParser:
    """Log free changes, warn of risky ones, refuse those that would make the curve no result.

    Returns the config to go on with. A run of a `study`, and an `idle` one, with nothing left to
    train, keep their own but for where data and files are.
    """
    free, warned, refused = compare_for_resume(before.resolved, config.resolved)
    text = "{} was {!r} and cannot become {!r} in a resumed run: start a new one"
    if refused:
        raise ConfigError("\n".join(text.format(*change) for change in refused))
    decisive = [change for change in (*free, *warned) if not is_place(change[0])]
    if decisive and study is not None:
        raise ConfigError(
            f"{run} is a run of the study {study}, whose runs are all of the study's settings: "
            f"{', '.join(path for path, *_ in decisive)} cannot change in it, start a run of your "
            f"own with -c {run.config}"
        )
    if idle:
        left = [change for change in decisive if change[0] != LABELS]
        free, warned = [change for change in (*free, *warned) if change not in left], []
        if left:
            last = run.begun()[-1]
            longer = last.planned != trainer_settings(config, show_progress=False).length
            logger.warning(
                "nothing is left to train%s, so the run keeps the settings it was trained with: %s",
                f" ({last.path.name} cannot go on: {last.closed})" if longer else "",
                ", ".join(f"{path} stays {old!r}, not {new!r}" for path, old, new in left),
            )
        moved = [Override("--set", tuple(path.split(".")), new) for path, _, new in free]
        config = ConfigParser(before.resolved, registries(), moved)
    for path, old, new in free:
        logger.info("%s: %r -> %r", path, old, new)
    for path, old, new in warned:
        logger.warning("%s: %r -> %r; the run is no longer of one piece", path, old, new)
    return config


def check_weights(
    run: RunFolder, setup: RunSetup, named: tuple[Path, Mapping[str, Any]] | None
) -> None:
    """Refuse to continue on other data, with another architecture, or from what is overtaken.

    `named` is the checkpoint that was named and its content, if any.
    """
    try:
        initial = load_checkpoint(run.initial)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: every cycle starts from it, so put back a copy with its .sha256 file, or "
            "start a new run"
        ) from error
    for path, content in ((run.initial, initial), *([named] if named else [])):
        check_can_go_on(content, path)
        _check_fits(path, content, setup)
    cycles = run.cycles()
    last = cycles[-1] if cycles else None
    candidates = (last.resumable() or last.supervised.resumable()) if last else []
    if named and candidates:
        reached, furthest = (
            [content[name] for name in ("cycle", "epoch", "batch")]
            for content in (named[1], newest_good(candidates)[1])
        )
        if reached < furthest:
            raise CheckpointError(
                f"the run has gone on past {named[0]}: resume the folder {run}, or start a "
                "new run from the checkpoint with --init-from"
            )
    # Labels may have changed that the furthest training has used.
    for cycle in reversed(cycles):
        try:
            path, content, _ = newest_good([*cycle.resumable(), cycle.best])
        except CheckpointError:
            # Whoever needs a damaged one tells of it.
            continue
        _check_fits(path, content, setup)
        return


def _check_fits(path: Path, content: Mapping[str, Any], setup: RunSetup) -> None:
    """Refuse other data than the checkpoint's, and another architecture."""
    if (difference := data_difference(content, setup)) is not None:
        raise CheckpointError(
            f"the data is not that of {path}: {difference}; give the run its own again, or start a "
            "new one with --init-from"
        )
    load_weights(setup.detector.model(), content, path)
