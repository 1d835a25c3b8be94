"""Compare selection strategies: arms x paired seeds as ordinary runs, then table and report."""

import argparse
import logging
import os
import shlex
import sys
from pathlib import Path

from med_sslal.cli.args import add_device, add_overrides
from med_sslal.utils.errors import ConfigError

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to `parser`."""
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="FILE", help="a study")
    parser.add_argument(
        "-j", "--jobs", type=int, default=1, metavar="N", help="runs at the same time (default 1)"
    )
    add_device(parser)
    add_overrides(parser, "any key of every run, such as trainer.steps_per_cycle=20; repeatable")
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


def run(args: argparse.Namespace) -> int:
    """Run or continue the study; returns the exit code."""
    from med_sslal.cli.registries import registries
    from med_sslal.cli.report import write_study
    from med_sslal.cli.study_results import finish_study
    from med_sslal.cli.study_runs import StudyRuns
    from med_sslal.config.study import StudyConfig
    from med_sslal.logger.logger import setup_logging

    if args.jobs < 1:
        raise ConfigError(f"--jobs takes 1 or more, found {args.jobs}")
    setup_logging(1)
    study = StudyConfig.from_file(args.config, registries(), args.overrides)
    runs = StudyRuns(study, registries(), args.device)
    if args.print_commands:
        for job in runs.left():
            sys.stdout.write(shlex.join([*_command(args), "--only", str(job)]) + "\n")
        return 0
    runs.check()
    if args.only is not None:
        return runs.run_one(args.only)
    code = runs.run_all(args.jobs)
    if code == 0:
        finish_study(study)
        sys.stdout.write(f"report: {write_study(study.folder)}\n")
    elif code > 128:
        command = shlex.join([*_command(args), "--jobs", str(args.jobs)])
        sys.stdout.write(f"stopped; go on with: {command}\n")
    return code


def _command(args: argparse.Namespace) -> list[str]:
    """This study's command, without what belongs to one call."""
    words = ["python", "-m", "med_sslal", "study", "-c", os.fspath(args.config)]
    if args.device is not None:
        words += ["--device", args.device]
    for override in args.overrides:
        words += ["--set", override.text]
    return words
