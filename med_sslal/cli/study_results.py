"""The end of a study: curves of its runs, their comparison, table and report."""

import csv
import io
import logging
import sys
from typing import Any

from med_sslal.config.study import StudyConfig
from med_sslal.eval.label_efficiency import compare_arms
from med_sslal.eval.study_result import Curve, StudyResult
from med_sslal.eval.verdict import verdict
from med_sslal.report.study_table import study_table
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

# Name of an x-axis to its column of a run's rows.
AXES = {"images": "labelled_images", "boxes": "labelled_boxes"}

Rows = dict[str, dict[int, list[dict[str, Any]]]]


def finish_study(study: StudyConfig) -> dict[str, StudyResult]:
    """Compare the finished runs; writes `results.json`, `results.csv` and prints the table.

    Returns:
        Axis (images, boxes) to the comparison along it.

    Raises:
        DataError: A run has no value of the metric.
    """
    rows = _rows(study)
    full = None
    if study.full is not None:
        full = {seed: _value(study, own[-1]) for seed, own in rows[study.full].items()}
    results = {}
    for unit, column in AXES.items():
        curves = {
            arm: {
                seed: Curve(
                    tuple(float(row[column]) for row in own),
                    tuple(_value(study, row) for row in own),
                )
                for seed, own in by_seed.items()
            }
            for arm, by_seed in rows.items()
            if arm != study.full
        }
        results[unit] = compare_arms(curves, full, study.baseline, unit=unit)
    sentences = verdict(results["images"])
    content = {
        "format_version": 1,
        "metric": study.metric,
        **{unit: result.to_json() for unit, result in results.items()},
        "verdict": sentences,
    }
    write_json(study.folder / "results.json", content)
    _write_csv(study, rows)
    sys.stdout.write(study_table(results["images"]) + "\n")
    for sentence in sentences:
        sys.stdout.write(sentence + "\n")
    return results


def _rows(study: StudyConfig) -> Rows:
    """Arm to seed to the rows of its run."""
    return {
        arm: {
            seed: read_json(study.folder / arm / f"s{seed}" / "summary.json")["cycles"]
            for seed in study.seeds
        }
        for arm in study.arms
    }


def _value(study: StudyConfig, row: dict[str, Any]) -> float:
    """The compared metric of one cycle."""
    value = row.get(study.metric)
    if value is None:
        raise DataError(
            f"a run of {study.folder} has no {study.metric} in cycle {row['cycle']}: it is "
            "undefined there, compare another metric"
        )
    return float(value)


def _write_csv(study: StudyConfig, rows: Rows) -> None:
    """All cycles of all runs as one table."""
    flat = [
        {"arm": arm, "seed": seed, **row}
        for arm, by_seed in rows.items()
        for seed, own in by_seed.items()
        for row in own
    ]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in flat for name in row))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in flat)
    path = study.folder / "results.csv"
    atomic_write(path, lambda stream: stream.write(text.getvalue().encode()))
