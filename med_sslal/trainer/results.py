"""The table of a run: one row per cycle, in summary.json and results.csv; and its stopwatch."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med_sslal.utils.util import atomic_write, read_json, write_json

SUMMARY_VERSION = 1
TIMING_FILE = "timing.json"


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
