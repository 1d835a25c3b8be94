"""Write the report of runs and studies: one HTML file each that needs no network."""

import sys
from argparse import Namespace
from pathlib import Path

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.cli.build import build_dataset, with_answers
from med_sslal.cli.registries import registries
from med_sslal.cli.status import progress_of, query_out
from med_sslal.config.parse_config import ConfigParser
from med_sslal.report.run_data import load_run
from med_sslal.report.run_page import write_run_report
from med_sslal.report.study_data import load_study
from med_sslal.report.study_page import write_study_report
from med_sslal.study.study_folder import STUDY_FILE
from med_sslal.trainer.damage import telling_what_to_remove
from med_sslal.trainer.run_folder import RunFolder, named_path
from med_sslal.utils.errors import DataError, UserError
from med_sslal.utils.util import read_json

_NO_DATA = (
    "The data of the run could not be opened, so pictures and whatever needs the truth are missing."
)


def run(args: Namespace) -> int:
    """Write the reports that `args` asks for, a path a line; returns the exit code."""
    runs = [RunFolder(named_path(path)) for path in args.path]
    # All are looked at before the first is written.
    for run, path in zip(runs, args.path, strict=True):
        if not (run.exists or (run.path / STUDY_FILE).is_file()):
            raise UserError(
                f"{path} is neither a run folder (it has no {run.config.name}) nor a study folder "
                f"(no {STUDY_FILE}): name the folder that train.py or the study command printed"
            )
    for run in runs:
        # The pointer to the newest run is a link; the page must name the run itself.
        folder = run.path.resolve() if run.path.is_symlink() else run.path
        with telling_what_to_remove(RunFolder(folder)):
            is_study = (folder / STUDY_FILE).is_file()
            page = (
                write_study_report(load_study(folder)) if is_study else write_run(RunFolder(folder))
            )
        sys.stdout.write(f"{page}\n")
    return 0


def write_run(run: RunFolder, dataset: BaseDataset | None = None) -> Path:
    """Write the report of a run folder; returns its path.

    `dataset` are the run's images with the labels that it has used. None opens its data set; where
    that cannot be done the page says so and does without pictures and truth.
    """
    source, differences = run.config, None
    remarks: list[str] = []
    if (query := query_out(run)) is not None:
        remarks.append(f"A person is asked: {progress_of(query, run)[0]}.")
    try:
        config = ConfigParser(read_json(source), registries(), source=str(source))
        differences = config.differences()
        if dataset is None:
            own = read_json(run.split)
            opened = build_dataset(config, own)
            if {name: list(ids) for name, ids in opened.images.splits.items()} != own:
                raise DataError("Its images or its split have changed since.")
            begun = run.begun()
            dataset = with_answers(opened, begun[-1]) if begun else opened
    except UserError as error:
        remarks.append(f"{_NO_DATA} {error}")
    return write_run_report(load_run(run, dataset, differences, tuple(remarks)))
