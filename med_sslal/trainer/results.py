"""The table of a run: one row per cycle, in summary.json and results.csv; and its stopwatch."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med_sslal.base.types import Annotation
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.ssl.quality import hidden_truth_quality
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.util import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

SUMMARY_VERSION = 1
TIMING_FILE = "timing.json"


def cycle_row(
    setup: RunSetup,
    *,
    number: int,
    labels: Mapping[str, Annotation],
    pseudo: PseudoLabels | None,
    quality: Mapping[str, Mapping[str, float | None]],
    training: Mapping[str, Any],
    results: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """One cycle's line of the table.

    Args:
        setup: The run.
        number: The cycle.
        labels: The labelled set that it trained on.
        pseudo: The pseudo-labels besides, None in cycle 0 and without any.
        quality: What `pseudo_quality` gave.
        training: Its `training.json`.
        results: What `evaluate` gave, by split.
        seconds: How long the evaluation took.
    """
    n_boxes = sum(label.n_objects for label in labels.values())
    added = pseudo.labels if pseudo else {}
    values = {
        f"{split}_{name}": value
        for split in ("val", "test")
        for name, value in results[split]["values"].items()
    }
    found = [each["precision"] for each in quality.values() if each["precision"] is not None]
    interval = results["test"]["intervals"].get("sens_mean") or (None, None)
    return {
        "cycle": number,
        "labelled_images": len(labels),
        "labelled_boxes": n_boxes,
        "labelled_seconds": round(setup.helper.costs.seconds(len(labels), n_boxes), 1),
        "pseudo_images": len(added),
        "pseudo_boxes": sum(label.n_objects for label in added.values()),
        "pseudo_precision": sum(found) / len(found) if found else None,
        "steps": training["steps"],
        "best_epoch": training["best_epoch"],
        **values,
        "test_sens_mean_low": interval[0],
        "test_sens_mean_high": interval[1],
        "minutes": round((training["seconds"] + seconds) / 60, 3),
    }


def pseudo_quality(
    setup: RunSetup, number: int, pseudo: PseudoLabels | None
) -> dict[str, dict[str, float | None]]:
    """Precision and recall of a cycle's pseudo-labels by class, from an audit of hidden labels.

    It is written down and used for nothing: this is what a simulation can know.
    """
    if pseudo is None:
        return {}
    truth = setup.oracle.audit(pseudo.labels)
    graded = hidden_truth_quality(pseudo.labels, truth, setup.class_names)
    for name, quality in graded.items():
        logger.info(
            "cycle %d: pseudo-labels of %s: precision %s, recall %s",
            number,
            name,
            *("-" if value is None else f"{value:.3f}" for value in quality),
        )
    return {name: quality._asdict() for name, quality in graded.items()}


def write_results(folder: Path, rows: Sequence[Mapping[str, Any]], *, finished: bool) -> None:
    """Write the rows so far to `summary.json` and `results.csv` of the run folder.

    Args:
        folder: The run folder.
        rows: One for each finished cycle.
        finished: Whether no cycle follows.
    """
    content = {"format_version": SUMMARY_VERSION, "finished": finished, "cycles": list(rows)}
    write_json(folder / "summary.json", content)
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    atomic_write(folder / "results.csv", lambda stream: stream.write(text.getvalue().encode()))


def note_seconds(folder: Path, stage: str, seconds: float) -> None:
    """Note in `timing.json` of a cycle's folder how long a stage took.

    The training is not among the stages there: it may be resumed, and `training.json` has its sum.
    """
    path = folder / TIMING_FILE
    before = read_json(path)["seconds"] if path.exists() else {}
    write_json(path, {"seconds": {**before, stage: round(seconds, 3)}})
