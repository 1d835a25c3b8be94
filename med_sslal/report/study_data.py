"""What a study folder holds, read for its report: all runs, or those that are there so far."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med_sslal.study.results_file import ResultsFile
from med_sslal.study.study_folder import FORMAT_VERSION, RESULTS_FILE, STUDY_FILE, UNITS, run_folder
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import check_version, read_json


@dataclass(frozen=True)
class StudyData:
    """A study, for its report."""

    folder: Path  # The run of an arm and seed lies in `arm/sSEED`.
    name: str
    metrics: tuple[str, ...]  # The compared columns of a run's rows; the first is drawn.
    baselines: tuple[str, ...]  # The arms that the others are held against.
    full: str | None  # The arm of full supervision.
    seeds: tuple[int, ...]  # One run of every arm for each, but for the ceiling's.
    n_runs: int
    strategies: Mapping[str, Mapping[str, Any]]  # Arm, in order, to the keys that it changes.
    shared: Mapping[str, Any]  # Keys that all arms change, and the config that they start from.
    config: Mapping[str, Any]  # The resolved config of the first arm.
    # Arm to seed to the measured cycles of its run.
    rows: Mapping[str, Mapping[int, list[Mapping[str, Any]]]]
    finished: frozenset[tuple[str, int]]  # Arms and seeds whose runs have ended.
    # Metric to baseline to what `Family.to_json` gave; empty before the comparison.
    families: Mapping[str, Mapping[str, Mapping[str, Any]]]
    notes: tuple[str, ...]  # What a reader must know of how the runs were made.

    @property
    def metric(self) -> str:
        """The one that is drawn."""
        return self.metrics[0]

    @property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """Axis to comparison, of the first metric with the first baseline; empty before it."""
        by_baseline = self.families.get(self.metric, {})
        first = by_baseline.get(self.baselines[0], {})
        return {unit: first[unit] for unit in UNITS if unit in first}

    @property
    def compared(self) -> tuple[int, ...]:
        """The seeds that the comparison has: those with a run of every arm; none before it."""
        if not self.results:
            return ()
        return tuple(self.results["images"]["arms"][self.baselines[0]]["seeds"])

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
            known = {"format_version": FORMAT_VERSION, **content}
            check_version(known, FORMAT_VERSION, folder, oldest=FORMAT_VERSION)
        seeds, arms = tuple(study["seeds"]), study["arms"]
        summaries = {
            (arm, seed): run.read_summary()
            for arm in arms
            for seed in seeds
            if (run := run_folder(folder, arm, seed)).summary.exists()
        }
        listed, notes = Path(study["results"] or ""), list(results.get("notes", ()))
        if study["results"] and not listed.is_file():
            notes.append(f"There is no file {listed}: runs that it alone had are missing.")
        for job, outcome in (ResultsFile(listed).outcomes if listed.is_file() else {}).items():
            if job[0] in arms and job[1] in seeds:
                summaries[job] = {"finished": True, "cycles": outcome.rows}
        families: dict[str, dict[str, Any]] = {}
        for family in results.get("families", ()):
            own = family["metric"] in study["metrics"] and family["baseline"] in study["baselines"]
            if not own or not family["images"]["arms"].keys() <= arms.keys():
                notes.append(
                    f"{RESULTS_FILE} compares arms, metrics or baselines that the study has no "
                    "longer: run it to its end again."
                )
                continue
            families.setdefault(family["metric"], {})[family["baseline"]] = family
        return StudyData(
            folder=folder,
            name=study["name"],
            metrics=tuple(study["metrics"]),
            baselines=tuple(study["baselines"]),
            full=study["full"],
            seeds=seeds,
            n_runs=study["n_runs"],
            strategies=arms,
            shared=study["set"],
            config=study["config"],
            rows={
                arm: {s: summaries[arm, s]["cycles"] for s in seeds if (arm, s) in summaries}
                for arm in arms
            },
            finished=frozenset(job for job, own in summaries.items() if own.get("finished")),
            families=families,
            notes=tuple(dict.fromkeys(notes)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / STUDY_FILE} describes no study: {error!r}") from error
