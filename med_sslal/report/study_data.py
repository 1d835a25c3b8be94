"""What a study folder holds, read for its report: all runs, or those that are there so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med_sslal.study.study_folder import FORMAT_VERSION, RESULTS_FILE, STUDY_FILE, UNITS, run_folder
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import check_version, read_json


@dataclass(frozen=True)
class StudyData:
    """A study, for its report.

    Attributes:
        folder: Its folder; the run of an arm and seed lies in `arm/sSEED`.
        name: Its name.
        metric: The compared column of a run's rows.
        baseline: The arm that the others are held against.
        full: The arm of full supervision, None without one.
        seeds: One run of every arm for each.
        strategies: Arm, in order, to the keys that it changes.
        shared: Keys that all arms change, and the config that they start from.
        config: The resolved config of the first arm.
        rows: Arm to seed to the measured cycles of its run.
        finished: Arms and seeds whose runs have ended.
        results: Axis to what `StudyResult.to_json` gave; empty before the comparison is made.
        verdict: What the comparison supports, a sentence each.
    """

    folder: Path
    name: str
    metric: str
    baseline: str
    full: str | None
    seeds: tuple[int, ...]
    strategies: Mapping[str, Mapping[str, Any]]
    shared: Mapping[str, Any]
    config: Mapping[str, Any]
    rows: Mapping[str, Mapping[int, list[Mapping[str, Any]]]]
    finished: frozenset[tuple[str, int]]
    results: Mapping[str, Mapping[str, Any]]
    verdict: tuple[str, ...]

    @property
    def n_runs(self) -> int:
        """Runs that were planned."""
        return len(self.strategies) * len(self.seeds)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that have a curve, in order."""
        return tuple(arm for arm in self.strategies if arm != self.full)


def load_study(folder: Path) -> StudyData:
    """Read a study folder.

    Raises:
        DataError: A file is damaged, or written by a newer version.
    """
    study = read_json(folder / STUDY_FILE)
    path = folder / RESULTS_FILE
    results = read_json(path) if path.exists() else {}
    try:
        for content in (study, results):
            check_version({"format_version": FORMAT_VERSION, **content}, FORMAT_VERSION, folder)
        seeds, arms = tuple(study["seeds"]), study["arms"]
        summaries = {
            (arm, seed): run.read_summary()
            for arm in arms
            for seed in seeds
            if (run := run_folder(folder, arm, seed)).summary.exists()
        }
        return StudyData(
            folder=folder,
            name=study["name"],
            metric=study["metric"],
            baseline=study["baseline"],
            full=study["full"],
            seeds=seeds,
            strategies=arms,
            shared=study["set"],
            config=study["config"],
            rows={
                arm: {s: summaries[arm, s]["cycles"] for s in seeds if (arm, s) in summaries}
                for arm in arms
            },
            finished=frozenset(job for job, own in summaries.items() if own.get("finished")),
            results={unit: results[unit] for unit in UNITS if unit in results},
            verdict=tuple(results.get("verdict", ())),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / STUDY_FILE} describes no study: {error!r}") from error
