"""The runs of a study: what is done, what is left, and the command that goes on with one."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.study.results_file import Outcome, ResultsFile
from med_sslal.study.settings_hash import decisive, is_place, settings_hash
from med_sslal.study.study_config import StudyConfig
from med_sslal.study.study_folder import (
    CONFIGS,
    FORMAT_VERSION,
    LOGS,
    SHARED,
    STUDY_FILE,
    run_folder,
)
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.util import read_json, write_json, write_versioned


class Job(NamedTuple):
    """One run of a study; as text `arm/s0`."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}/s{self.seed}"


class StudyRuns:
    """The runs of one study, each an ordinary run in its own folder and process.

    The trainings of cycle 0 are made once per seed, as the runs of an arm `cycle0`; the arms that
    share it take them over. Outcomes in a results file count as runs that are done.
    ConfigError where the study has not one of the seeds.
    """

    def __init__(
        self,
        study: StudyConfig,
        results: ResultsFile | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self._study, self.root, self._results = study, study.folder, results
        self._settings: dict[Job, dict[str, Any]] = {}
        for seed in seeds or ():
            if seed not in study.seeds:
                raise ConfigError(f"--seeds: the study has no seed {seed}; there are {study.seeds}")
        self._sharing = study.sharing
        first = [(SHARED, seed) for seed in study.seeds if self._sharing]
        # A seed's runs in the study's order, after its cycle 0.
        pairs = sorted([*first, *study.runs], key=lambda pair: study.seeds.index(pair[1]))
        self._all = tuple(Job(*pair) for pair in pairs)
        self.jobs = tuple(job for job in self._all if seeds is None or job.seed in seeds)

    def folder(self, job: Job) -> RunFolder:
        """Where a run lies."""
        return run_folder(self.root, *job)

    def log(self, job: Job) -> Path:
        """What a run said that was started beside others."""
        return self.root / LOGS / f"{job.arm}_s{job.seed}.log"

    def left(self) -> list[Job]:
        """The runs that are not done, each after the one that it waits for.

        ConfigError where a run on disk, or in the results file, has not the study's settings.
        """
        for job in self._all:
            if self._listed(job) is None and self.folder(job).exists:
                self._check(job)
        left = {job for job in self.jobs if job.arm != SHARED and not self._done(job)}
        # What cycle 0 is trained for are its weights; its numbers are in every arm.
        left |= {first for job in left if (first := self.waits_for(job)) and not self._ready(first)}
        return [job for job in self.jobs if job in left]

    def outcomes(self) -> dict[tuple[str, int], Outcome]:
        """Those of all arms of the study, of whatever seed, that are done; by arm and seed."""
        return {
            job: self._listed(job) or Outcome.of(self.folder(job), self._decisive(job))
            for job in self._all
            if job.arm != SHARED and self._done(job)
        }

    def record(self, *jobs: Job) -> None:
        """Write those that have ended, and are not in it, into the results file if there is one."""
        results = self._results
        if results is None:
            return
        for job in jobs:
            if job.arm != SHARED and self._finished(job) and self._listed(job) is None:
                results.add(*job, Outcome.of(self.folder(job), self._decisive(job)))

    def waits_for(self, job: Job) -> Job | None:
        """The run whose cycle 0 a run takes over when it starts; None where it needs none."""
        begun = self.folder(job).exists
        return Job(SHARED, job.seed) if not begun and job.arm in self._sharing else None

    def named(self, name: str) -> Job:
        """The run of a name such as `random/s0`; ConfigError where there is none."""
        for job in self.jobs:
            if str(job) == name:
                return job
        known = ", ".join(map(str, self.jobs))
        raise ConfigError(f"--only: there is no run '{name}'; there are {known}")

    def prepare(self) -> None:
        """Write what the study is; the report reads it."""
        study = self._study
        for name in (CONFIGS, LOGS):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        content = {
            "name": study.name,
            "metrics": list(study.metrics),
            "baselines": list(study.baselines),
            "full": study.full,
            "seeds": list(study.seeds),
            "n_runs": len(study.runs),
            "arms": {
                arm: {".".join(one.path): one.value for one in own}
                for arm, own in study.strategies.items()
            },
            "results": None if self._results is None else str(self._results.path.resolve()),
            "set": {".".join(one.path): one.value for one in study.changes},
            "config": next(iter(study.arms.values())).resolved,
        }
        write_versioned(self.root / STUDY_FILE, FORMAT_VERSION, content)

    def command(self, job: Job, device: str | None) -> list[str]:
        """Words after `python` that start or continue a run.

        A finished cycle 0 has nothing to continue: one without weights is removed, to start anew.
        """
        folder, config = self.folder(job), self._study.run_config(*job)
        words = ["-m", "med_sslal", "train"]
        if job.arm == SHARED and self._finished(job):
            shutil.rmtree(folder.path)
        if folder.exists:
            words += ["--resume", str(folder)]
        else:
            path = self.root / CONFIGS / f"{job.arm}_s{job.seed}.json"
            write_json(path, config.resolved)
            words += ["-c", str(path), "--run-id", folder.path.name]
            if (first := self.waits_for(job)) is not None:
                words += ["--cycle0-from", str(self.folder(first))]
        return words if device is None else [*words, "--device", device]

    def _done(self, job: Job) -> bool:
        return self._listed(job) is not None or self._finished(job)

    def _finished(self, job: Job) -> bool:
        """Whether a run on disk has finished."""
        folder = self.folder(job)
        return folder.exists and folder.finished

    def _ready(self, first: Job) -> bool:
        """Whether a cycle 0 can be taken over: of a finished one only small files may be left."""
        return self._finished(first) and self.folder(first).cycle(0).best.is_file()

    def _decisive(self, job: Job) -> dict[str, Any]:
        if job not in self._settings:
            self._settings[job] = decisive(self._study.run_config(*job))
        return self._settings[job]

    def _listed(self, job: Job) -> Outcome | None:
        """The outcome of an arm's run in the results file; None where it has none like it."""
        results = None if job.arm == SHARED else self._results
        if results is None or (outcome := results.outcomes.get(job)) is None:
            return None
        if outcome.config_hash == settings_hash(now := self._decisive(job)):
            return outcome
        # A run on disk takes its place, or tells the key that differs.
        if self.folder(job).exists:
            self._check(job)
            return None
        raise ConfigError(
            f"{results.path} has {job} of other settings than the study's "
            f"({_differences(outcome.settings, now)}): give the study another results file, or the "
            "settings that are there by --set"
        )

    def _check(self, job: Job) -> None:
        """ConfigError where a run on disk has other settings than the study's."""
        path = self.folder(job).config
        saved = ConfigParser(read_json(path), self._study.registries, source=str(path))
        new = self._study.run_config(*job)
        free, warned, refused = compare_for_resume(saved.resolved, new.resolved)
        for key, old, now in (*refused, *warned, *free):
            if not is_place(key):
                raise ConfigError(
                    f"{self.folder(job)} was run with {key} {old!r}, the study now says {now!r}: "
                    "give the study another name, or delete that folder"
                )


def _differences(listed: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    """The keys in which settings differ, with their values; a key that is missing is at default."""
    if listed is None:
        return "the file does not say in which keys"
    pairs = [
        (key, *(repr(own[key]) if key in own else "its default" for own in (listed, now)))
        for key in {**listed, **now}
    ]
    return ", ".join(f"{key} {old} there, {new} here" for key, old, new in pairs if old != new)
