"""The report of one run."""

from pathlib import Path
from typing import Any

from med_sslal.report.html import Content, page, tag, tiles, write_page
from med_sslal.report.run_choices import bought_section, pseudo_section, queries_section
from med_sslal.report.run_data import RunData
from med_sslal.report.run_sections import (
    calibration_section,
    config_section,
    curve_section,
    cycles_section,
    duration,
    froc_section,
    headline_metrics,
    number,
    time_section,
)

PHANTOM = "Made on the phantom: synthetic images, no patient data."
NOT_A_DEVICE = (
    "Research software, not a medical device: nothing here may guide the care of a person."
)


def write_run_report(run: RunData) -> Path:
    """Write `report.html` into the run folder; returns its path.

    Raises:
        UserError: A file of the run or of its data is damaged, or the folder cannot be written.
    """
    return write_page(run.folder.report, run_page(run))


def run_page(run: RunData) -> str:
    """The report as HTML that needs no other file.

    Raises:
        DataError: A file of the run or of its data is damaged.
    """
    command = f"python train.py -c {run.folder.config}"
    sections = []
    if run.rows:
        sections = [
            cycles_section(run),
            curve_section(run),
            froc_section(run),
            queries_section(run),
            bought_section(run),
            pseudo_section(run),
            calibration_section(run),
        ]
    sections += [time_section(run), config_section(run, command)]
    return page(
        str(run.config["name"]),
        kicker="Report of a run",
        facts=_facts(run),
        notices=_notices(run),
        intro=_intro(run),
        sections=[section for section in sections if section is not None],
    )


def _facts(run: RunData) -> list[Content]:
    """What the run is, in a line."""
    facts: list[Content] = [run.strategy, f"seed {run.config['seed']}"]
    if run.dataset is not None:
        counts = {name: len(ids) for name, ids in run.dataset.images.splits.items()}
        facts.append(
            f"pool of {counts['train']} images, {counts['val']} for validation, "
            f"{counts['test']} for test"
        )
    facts += [str(run.environment["device"])] if "device" in run.environment else []
    return [*facts, tag("code", run.folder.path.name)]


def _notices(run: RunData) -> list[Content]:
    """What every reader must know."""
    notices: list[Content] = [NOT_A_DEVICE]
    if run.dataset is not None and run.dataset.images.note:
        notices.append(f"Made on the {run.dataset.images.note}.")
    elif "Phantom" in str(run.config["dataset"]["type"]):
        notices.append(PHANTOM)
    if not run.finished:
        done = len(run.rows)
        notices.append(
            f"This run is in progress or was interrupted: {done} of {run.n_cycles + 1} trainings "
            "are measured. The page shows what is there; go on with "
            f"python train.py --resume {run.folder}"
        )
    return [*notices, *run.remarks]


def _intro(run: RunData) -> list[Content]:
    """The finding in a sentence, and key figures."""
    if not run.rows:
        return [tag("p", "No training has been measured yet.", class_="finding")]
    first, last = run.rows[0], run.rows[-1]
    parts: list[Content] = []
    metrics = headline_metrics(run.rows)
    entries: list[tuple[str, Content, Content]] = []
    if metrics:
        key, name = metrics[0]
        parts.append(tag("p", _finding(first, last, key, name), class_="finding"))
        entries += [(name, number(last.get(key)), _interval(last, key)) for key, name in metrics]
    entries += [
        ("labelled images", last["labelled_images"], f"{last['labelled_boxes']} boxes"),
        ("trainings", len(run.rows), _planned(run)),
        ("time", duration(run.seconds), "all stages of all cycles"),
    ]
    return [*parts, tiles(entries)]


def _planned(run: RunData) -> str:
    """How the number of trainings compares with the plan."""
    planned = f"of {run.n_cycles + 1} planned"
    return planned if run.early_end is None else f"{planned}, ended: {run.early_end}"


def _finding(first: Any, last: Any, key: str, name: str) -> str:
    """What the run came to."""
    end = f"with {last['labelled_images']} labelled images the {name} on the test images is "
    end += number(last.get(key))
    if first is last or first.get(key) is None or last.get(key) is None:
        return end[0].upper() + end[1:] + "."
    return (
        f"{end[0].upper()}{end[1:]}; it was {number(first[key])} with {first['labelled_images']}."
    )


def _interval(row: Any, key: str) -> str | None:
    """The interval of a metric, where there is one."""
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    return None if low is None or high is None else f"95 % {low:.3f} to {high:.3f}"
