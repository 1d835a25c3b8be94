"""The end of a study: curves of its runs, their comparison and verdict."""

from typing import Any

from med_sslal.study.label_efficiency import compare_arms
from med_sslal.study.study_config import StudyConfig
from med_sslal.study.study_folder import FORMAT_VERSION, RESULTS_FILE, TABLE_FILE, UNITS, run_folder
from med_sslal.study.study_result import Curve, StudyResult
from med_sslal.study.verdict import verdict
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import atomic_write, csv_text, write_versioned

Rows = dict[str, dict[int, list[dict[str, Any]]]]


def finish_study(study: StudyConfig) -> tuple[dict[str, StudyResult], list[str]]:
    """Compare the finished runs; writes `results.json` and `results.csv`.

    Returns:
        Axis (images, boxes) to its comparison, and the verdict's sentences.

    Raises:
        DataError: A run has no value of the metric.
    """
    rows: Rows = {
        arm: {
            seed: run_folder(study.folder, arm, seed).read_summary()["cycles"]
            for seed in study.seeds
        }
        for arm in study.arms
    }
    full = None
    if study.full is not None:
        full = {seed: _value(study, own[-1]) for seed, own in rows[study.full].items()}
    results = {
        unit: compare_arms(_curves(study, rows, column), full, study.baseline, unit=unit)
        for unit, column in UNITS.items()
    }
    sentences = verdict(results["images"])
    content = {
        "metric": study.metric,
        **{unit: result.to_json() for unit, result in results.items()},
        "verdict": sentences,
    }
    write_versioned(study.folder / RESULTS_FILE, FORMAT_VERSION, content)
    table = [
        {"arm": arm, "seed": seed, **row}
        for arm, by_seed in rows.items()
        for seed, own in by_seed.items()
        for row in own
    ]
    atomic_write(study.folder / TABLE_FILE, lambda stream: stream.write(csv_text(table).encode()))
    return results, sentences


def _curves(study: StudyConfig, rows: Rows, column: str) -> dict[str, dict[int, Curve]]:
    """Arm, but for full supervision, to seed to its curve against a count of labels."""
    return {
        arm: {
            seed: Curve(
                tuple(float(row[column]) for row in own), tuple(_value(study, row) for row in own)
            )
            for seed, own in by_seed.items()
        }
        for arm, by_seed in rows.items()
        if arm != study.full
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
