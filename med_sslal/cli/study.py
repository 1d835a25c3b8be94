"""Compare selection strategies: arms x paired seeds as ordinary runs, then table and report."""

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.called import called
from med_sslal.cli.registries import registries
from med_sslal.cli.train import build_setup
from med_sslal.eval.metric import metric_keys
from med_sslal.logger.logger import setup_logging
from med_sslal.report.study_data import load_study
from med_sslal.report.study_page import write_study_report
from med_sslal.report.study_table import study_table
from med_sslal.study.finish import finish_study
from med_sslal.study.launch import devices_in_turn, run_all, run_one
from med_sslal.study.results_file import ResultsFile
from med_sslal.study.study_config import StudyConfig
from med_sslal.study.study_runs import StudyRuns
from med_sslal.utils.errors import ConfigError


def run(args: Namespace) -> int:
    """Run or continue the study; returns the exit code."""
    setup_logging(1)
    study = StudyConfig.from_file(Path(args.config), registries(), args.overrides)
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
        _check(study, [own[job]])
        return run_one(runs, job, own[job])
    devices = devices_in_turn(args.device, args.jobs)
    _check(study, devices)
    code = run_all(runs, args.jobs, devices)
    if code == 0:
        for family in finish_study(study, runs.outcomes()):
            sys.stdout.write(f"{family.metric} against {family.baseline}\n\n")
            lines = [study_table(family.results["images"]), *family.sentences]
            sys.stdout.write("\n".join(lines) + "\n\n")
        sys.stdout.write(f"report: {write_study_report(load_study(study.folder))}\n")
    elif code > 128:
        command = shlex.join([*_command(args, args.device), "--jobs", str(args.jobs)])
        sys.stdout.write(f"stopped; go on with: {command}\n")
    return code


def _check(study: StudyConfig, devices: list[str | None]) -> None:
    """Build what every arm needs: what does not fit data or device shows before any training.

    It is built on the first of the devices that the runs will be given; arms differ in no key of
    the data.
    """
    any_arm, dataset = next(iter(study.arms.values())), None
    for device in devices[1:]:
        with _same_gpus():
            devices_of(any_arm, device)
    with _same_gpus():
        found = devices_of(any_arm, devices[0])
        for arm in study.arms:
            config = study.run_config(arm, study.seeds[0])
            dataset = dataset or build_dataset(config)
            build_setup(config, dataset, found, show_progress=False)
            keys = metric_keys(config["metrics"], dataset.labels.class_names)
            known = sorted(f"test_{key}" for key in keys)
            for metric in study.metrics:
                if metric not in known:
                    raise ConfigError(
                        f"{study.source} metrics: no value '{metric}'; there are {', '.join(known)}"
                    )


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


def _command(args: Namespace, device: str | None) -> list[str]:
    """This study's command, without what belongs to one call."""
    words = [*called("study").split(), "-c", args.config]
    if device is not None:
        words += ["--device", device]
    if args.results is not None:
        words += ["--results", os.fspath(args.results)]
    if args.seeds is not None:
        words += ["--seeds", ",".join(map(str, args.seeds))]
    for override in args.overrides:
        words += ["--set", override.text]
    return words
