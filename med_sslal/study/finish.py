"""The end of a study: curves of its runs, their comparisons and verdicts."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from med_sslal.study.label_efficiency import compare_arms
from med_sslal.study.results_file import Outcome, mixed_machines
from med_sslal.study.study_config import StudyConfig, has_student
from med_sslal.study.study_folder import FORMAT_VERSION, RESULTS_FILE, TABLE_FILE, UNITS
from med_sslal.study.study_result import Curve, StudyResult
from med_sslal.study.verdict import verdict
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import atomic_write, csv_text, write_versioned

logger = logging.getLogger(__name__)

Rows = dict[str, dict[int, list[dict[str, Any]]]]


@dataclass(frozen=True)
class Family:
    """All arms held against one baseline by one metric; p is corrected inside of it."""

    metric: str  # Column of a run's rows.
    baseline: str
    results: Mapping[str, StudyResult]  # By axis (images, boxes).
    sentences: tuple[str, ...]  # The verdict, of labels counted in images.

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        head = {"metric": self.metric, "baseline": self.baseline, "verdict": list(self.sentences)}
        return head | {unit: result.to_json() for unit, result in self.results.items()}


def finish_study(
    study: StudyConfig, outcomes: Mapping[tuple[str, int], Outcome]
) -> tuple[Family, ...]:
    """Compare the runs of all seeds that are done; writes `results.json` and `results.csv`.

    `outcomes` are by arm and seed, one for each arm of one seed at least, the ceiling aside;
    DataError where one has no value of a metric. Returns a family for each metric and baseline, in
    the order of the study.
    """
    curves = [arm for arm in study.arms if arm != study.full]
    seeds = [s for s in study.seeds if all((arm, s) in outcomes for arm in curves)]
    rows: Rows = {
        arm: {s: outcomes[arm, s].rows for s in seeds if (arm, s) in outcomes} for arm in study.arms
    }
    pairs = product(study.metrics, study.baselines)
    families = tuple(_family(study, rows, *pair) for pair in pairs)
    notes = mixed_machines({key: own for key, own in outcomes.items() if key[1] in seeds})
    notes += _apart(study, rows)
    for note in notes:
        logger.warning("%s", note)
    content = {"families": [family.to_json() for family in families], "notes": notes}
    write_versioned(study.folder / RESULTS_FILE, FORMAT_VERSION, content)
    table = [
        {"arm": arm, "seed": seed, **row}
        for arm, by_seed in rows.items()
        for seed, own in by_seed.items()
        for row in own
    ]
    atomic_write(study.folder / TABLE_FILE, csv_text(table).encode())
    return families


def _apart(study: StudyConfig, rows: Rows) -> list[str]:
    """A sentence for each seed whose arms share a cycle 0 that is not one and the same."""
    arms = [arm for arm in study.sharing if not has_student(study.arms[arm].resolved)]
    notes = []
    for seed in sorted({seed for arm in arms for seed in rows[arm]}):
        found: dict[tuple[Any, ...], list[str]] = {}
        for arm in arms:
            first = rows[arm][seed][0]
            found.setdefault(tuple(first.get(name) for name in study.metrics), []).append(arm)
        if len(found) > 1:
            groups = "; ".join(", ".join(own) for own in found.values())
            notes.append(
                f"The arms of seed {seed} do not begin with one model: their cycle 0 was trained "
                "more than once, with other code or on another machine, so that they differ by "
                f"that too: {groups}."
            )
    return notes


def _family(study: StudyConfig, rows: Rows, metric: str, baseline: str) -> Family:
    full = {s: _value(study, own[-1], metric) for s, own in rows.get(study.full or "", {}).items()}
    results = {
        unit: compare_arms(_curves(study, rows, column, metric), full or None, baseline, unit=unit)
        for unit, column in UNITS.items()
    }
    return Family(metric, baseline, results, tuple(verdict(results["images"])))


def _curves(
    study: StudyConfig, rows: Rows, column: str, metric: str
) -> dict[str, dict[int, Curve]]:
    """Arm, but for full supervision, to seed to its curve against a count of labels."""
    return {
        arm: {
            seed: Curve(
                tuple(float(row[column]) for row in own),
                tuple(_value(study, row, metric) for row in own),
            )
            for seed, own in by_seed.items()
        }
        for arm, by_seed in rows.items()
        if arm != study.full
    }


def _value(study: StudyConfig, row: dict[str, Any], metric: str) -> float:
    value = row.get(metric)
    if value is None:
        raise DataError(
            f"a run of {study.folder} has no {metric} in cycle {row['cycle']}: it is "
            "undefined there, compare another metric"
        )
    return float(value)
