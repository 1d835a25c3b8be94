"""`med-sslal status`: where a run stands, what a person has answered, and what comes next."""

import sys
from argparse import Namespace
from dataclasses import asdict, fields
from pathlib import Path
from shlex import quote

from med_sslal.cli.called import called
from med_sslal.practice.journal import read_journal
from med_sslal.practice.oracle import Progress
from med_sslal.practice.query_folder import read_query
from med_sslal.trainer.run_folder import RunFolder, named_path
from med_sslal.utils.errors import UserError
from med_sslal.utils.text_table import text_table
from med_sslal.utils.util import is_taken, read_json


def run(args: Namespace) -> int:
    """Tell of the run; returns the exit code."""
    folder = RunFolder(named_path(args.run).resolve())
    if not folder.exists:
        raise UserError(f"{args.run} is no run folder: it has no {folder.config.name}")
    busy = _at_work(folder)
    steps = "a process is at work in it: wait for its end\n" if busy else next_steps(folder)
    sys.stdout.write(f"run: {folder}\n{_standing(folder, busy)}{steps}")
    return 0


def _at_work(run: RunFolder) -> bool:
    """Whether another process trains in a run: it has the log to itself."""
    try:
        with run.log.open("rb") as log:
            return is_taken(log)
    except OSError:
        # No log to read, or no locks on its disk.
        return False


def query_out(run: RunFolder) -> Path | None:
    """The folder of the query whose answers the next cycle of a run needs; None without one."""
    cycles = run.begun()
    return cycles[-1].query if cycles and not run.finished else None


def next_steps(run: RunFolder, resume: str = "") -> str:
    """What comes next in a run, as commands; `resume` is the one that goes on with it."""
    resume = resume or f"{called('train')} --resume {quote(str(run))}"
    if run.finished:
        return "nothing is left to do: the run is finished\n"
    folder = query_out(run)
    if folder is None:
        return f"next: {resume}\n"
    told, progress = progress_of(folder, run)
    missing = progress.missing(read_json(run.config)["oracle"]["args"]["min_answered"])
    if not missing:
        return f"{told}\nnext: {resume}\n"
    return (
        f"{told}\n{missing} more must be answered before the run goes on. Next, as "
        f"{folder / 'README.md'} says, and then:\n"
        f"  {called('import')} {quote(str(folder))} FILE...\n  {resume}\n"
    )


def progress_of(folder: Path, run: RunFolder) -> tuple[str, Progress]:
    """How far the query in a folder is answered, as a sentence too."""
    query = read_query(folder)
    journal = read_journal(run.answers, query.class_names)
    progress = Progress.of([image.image_id for image in query.images], journal)
    return f"query {query.query_id} of cycle {query.cycle}: {progress}", progress


def _standing(run: RunFolder, busy: bool) -> str:
    cycles, planned = run.begun(), read_json(run.config)["al_settings"]["num_cycles"]
    if not cycles:
        return "no training has begun\n"
    last = cycles[-1]
    pool, n_train = read_json(last.pool), len(read_json(run.split)["train"])
    n_labelled, n_unlabelled = len(pool["labelled"]), len(pool["unlabelled"])
    training = "in training" if busy else "stopped in training"
    state = "selected" if last.queried else "measured" if last.measured else training
    lines = [
        f"cycle {last.number} of {planned}: {state}",
        f"{n_labelled} labelled, {n_unlabelled} unlabelled and "
        f"{n_train - n_labelled - n_unlabelled} skipped images",
    ]
    sent = [cycle.query for cycle in cycles if cycle.query is not None]
    if sent:
        names = [each.name.replace("_", " ") for each in fields(Progress)]
        rows = [["query", "images", *names]]
        for folder in sent:
            progress = progress_of(folder, run)[1]
            counts = (progress.total, *asdict(progress).values())
            rows.append([f"{folder.parent.name}/{folder.name}", *map(str, counts)])
        lines.append(text_table(rows, "<>"))
    return "\n".join(lines) + "\n"
