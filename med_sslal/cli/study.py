"""Compare selection strategies: arms x paired seeds as ordinary runs, then table and report."""

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from med_sslal.cli.args import add_device, add_overrides
from med_sslal.utils.errors import ConfigError

if TYPE_CHECKING:
    from med_sslal.base.base_dataset import BaseDataset
    from med_sslal.config.parse_config import ConfigParser
    from med_sslal.study.study_config import StudyConfig
    from med_sslal.study.study_runs import StudyRuns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="a study")
    parser.add_argument(
        "-j", "--jobs", type=int, default=1, metavar="N", help="runs at the same time (default 1)"
    )
    add_device(parser)
    add_overrides(parser, "any key of every run, such as trainer.steps_per_cycle=20; repeatable")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="write what each finished run gave into this small file, and take what is in it for "
        "done, with or without run folders",
    )
    parser.add_argument(
        "--seeds",
        type=_seeds,
        metavar="N,N",
        help="run these seeds of the study only, such as 0,1; all that are complete are compared",
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--only",
        metavar="ARM/sSEED",
        help="start or go on with this one run and stop, as in a cluster's job array",
    )
    instead.add_argument(
        "--print-commands",
        action="store_true",
        help="print one command for each run that is not done, those that others wait for first",
    )


def _seeds(text: str) -> list[int]:
    """Seeds in a list with commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes seeds such as 0,1, found '{text}'") from error


def run(args: argparse.Namespace) -> int:
    """Run or continue the study; returns the exit code."""
    from med_sslal.cli.registries import registries
    from med_sslal.logger.logger import setup_logging
    from med_sslal.study.launch import devices_in_turn, run_all, run_one
    from med_sslal.study.results_file import ResultsFile
    from med_sslal.study.study_config import StudyConfig
    from med_sslal.study.study_runs import StudyRuns

    if args.jobs < 1:
        raise ConfigError(f"--jobs takes 1 or more, found {args.jobs}")
    setup_logging(1)
    study = StudyConfig.from_file(args.config, registries(), args.overrides)
    results = None if args.results is None else ResultsFile(args.results)
    runs = StudyRuns(study, results, args.seeds)
    # Runs that are started one by one take the GPUs in turn too.
    one_by_one = devices_in_turn(args.device, 1)
    own = {job: one_by_one[i % len(one_by_one)] for i, job in enumerate(runs.jobs)}
    if args.print_commands:
        for job in runs.left():
            words = [*_command(args, own[job]), "--only", str(job)]
            sys.stdout.write(shlex.join(words) + "\n")
        return 0
    if args.only is not None:
        job = runs.named(args.only)
        _check(study, runs, [own[job]])
        return run_one(runs, job, own[job])
    devices = devices_in_turn(args.device, args.jobs)
    _check(study, runs, devices)
    code = run_all(runs, args.jobs, devices)
    if code == 0:
        _finish(study, runs)
    elif code > 128:
        command = shlex.join([*_command(args, args.device), "--jobs", str(args.jobs)])
        sys.stdout.write(f"stopped; go on with: {command}\n")
    return code


def _check(study: "StudyConfig", runs: "StudyRuns", devices: "list[str | None]") -> None:
    """Try what every arm needs, on the first of the devices that its runs will be given."""
    from med_sslal.cli.build import build_dataset, devices_of
    from med_sslal.cli.train import build_setup

    def build(config: "ConfigParser", dataset: "BaseDataset | None") -> "BaseDataset":
        opened = dataset or build_dataset(config)
        build_setup(config, opened, found, show_progress=False)
        return opened

    any_arm = next(iter(study.arms.values()))
    for device in devices[1:]:
        with _same_gpus():
            devices_of(any_arm, device)
    with _same_gpus():
        found = devices_of(any_arm, devices[0])
        runs.check(build)


@contextmanager
def _same_gpus() -> Iterator[None]:
    """Undo what naming a GPU does to this process: the runs name theirs themselves."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _finish(study: "StudyConfig", runs: "StudyRuns") -> None:
    """Print tables and verdicts, and write the report."""
    from med_sslal.cli.report import write_study
    from med_sslal.report.study_table import study_table
    from med_sslal.study.finish import finish_study

    for family in finish_study(study, runs.outcomes()):
        sys.stdout.write(f"{family.metric} against {family.baseline}\n\n")
        lines = [study_table(family.results["images"]), *family.sentences]
        sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.write(f"report: {write_study(study.folder)}\n")


def _command(args: argparse.Namespace, device: str | None) -> list[str]:
    """This study's command, without what belongs to one call."""
    words = ["python", "-m", "med_sslal", "study", "-c", os.fspath(args.config)]
    if device is not None:
        words += ["--device", device]
    if args.results is not None:
        words += ["--results", os.fspath(args.results)]
    if args.seeds is not None:
        words += ["--seeds", ",".join(map(str, args.seeds))]
    for override in args.overrides:
        words += ["--set", override.text]
    return words
