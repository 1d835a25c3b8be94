"""The runs of a study: what is done, what is left, and the command that goes on with one."""

import json
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

from med_sslal.base.base_dataset import BaseDataset
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import Change, compare_for_resume
from med_sslal.eval.metric import metric_keys
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

# Differences to a run on disk that leave the comparison as it is: where it runs, not what.
_PLACES = ("n_gpu", "dataset.args.root", "dataset.args.cache*")
# What of a finished run may grow: it then goes on.
_GROWING = ("trainer.steps_per_cycle", "al_settings.num_cycles")


class Job(NamedTuple):
    """One run of a study; as text `arm/s0`."""

    arm: str
    seed: int

    def __str__(self) -> str:
        """The run's folder inside the study's."""
        return f"{self.arm}/s{self.seed}"


class StudyRuns:
    """The runs of one study, each an ordinary run in its own folder and process.

    The trainings of cycle 0 are made once per seed, as the runs of an arm `cycle0`; every arm but
    full supervision takes them over.
    """

    def __init__(self, study: StudyConfig) -> None:
        """Prepare; nothing is started."""
        self._study, self.root = study, study.folder
        arms = [SHARED] if any(arm != study.full for arm in study.arms) else []
        firsts = [Job(arm, seed) for seed in study.seeds for arm in arms]
        self.jobs = (*firsts, *(Job(arm, seed) for seed in study.seeds for arm in study.arms))

    def folder(self, job: Job) -> RunFolder:
        """Where a run lies."""
        return run_folder(self.root, job.arm, job.seed)

    def left(self) -> list[Job]:
        """The runs that are not done, those that others wait for first.

        Raises:
            ConfigError: A run on disk is of other settings than the study's.
        """
        left = {job for job in self.jobs if not self._done(job)}
        # Of a finished cycle 0 only the small files may be left, which is enough for the table.
        for first in {self.waits_for(job) for job in left} - {None}:
            if first is not None and not self.folder(first).cycle(0).best.is_file():
                left.add(first)
        return [job for job in self.jobs if job in left]

    def waits_for(self, job: Job) -> Job | None:
        """The run whose cycle 0 a run takes over when it starts; None where it needs none."""
        begun = self.folder(job).exists
        return None if begun or job.arm in (SHARED, self._study.full) else Job(SHARED, job.seed)

    def order(self, job: Job) -> int:
        """The place of a run's seed."""
        return self._study.seeds.index(job.seed)

    def check(self, build: Callable[[ConfigParser, BaseDataset | None], BaseDataset]) -> None:
        """Build what every arm needs once: what is wrong shows before the first training.

        `build` makes all that a run is made of, for the device that it will use. It gets the data
        set of the arm before, as arms differ in no key of the data, and returns it.

        Raises:
            UserError: A setting does not fit the data or the device.
        """
        study, dataset = self._study, None
        for arm in study.arms:
            config = study.run_config(arm, study.seeds[0])
            dataset = build(config, dataset)
            keys = metric_keys(config["metrics"], dataset.labels.class_names)
            known = sorted(f"test_{key}" for key in keys)
            if study.metric not in known:
                there = ", ".join(known)
                raise ConfigError(
                    f"{study.source} metric: no value '{study.metric}'; there are {there}"
                )

    def named(self, name: str) -> Job:
        """The run of a name such as `random/s0`.

        Raises:
            ConfigError: There is no such run.
        """
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
            "metric": study.metric,
            "baseline": study.baseline,
            "full": study.full,
            "seeds": list(study.seeds),
            "arms": {
                arm: {".".join(one.path): one.value for one in own}
                for arm, own in study.strategies.items()
            },
            "set": {".".join(one.path): one.value for one in study.changes},
            "config": next(iter(study.arms.values())).resolved,
        }
        write_versioned(self.root / STUDY_FILE, FORMAT_VERSION, content)

    def command(self, job: Job, device: str | None) -> list[str]:
        """Words after `python` that start or continue a run."""
        folder, config = self.folder(job), self._study.run_config(*job)
        words = ["-m", "med_sslal", "train"]
        if folder.exists:
            words += ["--resume", str(folder)]
            for key, _, new in self._changes(job):
                words += ["--set", f"{key}={json.dumps(new)}"]
        else:
            path = self.root / CONFIGS / f"{job.arm}_s{job.seed}.json"
            write_json(path, config.resolved)
            words += ["-c", str(path), "--run-id", folder.path.name]
            if (first := self.waits_for(job)) is not None:
                words += ["--cycle0-from", str(self.folder(first))]
        return words if device is None else [*words, "--device", device]

    def _done(self, job: Job) -> bool:
        """Whether a run has finished with these settings."""
        folder = self.folder(job)
        return folder.exists and folder.finished and not self._changes(job)

    def _changes(self, job: Job) -> list[Change]:
        """What of a run on disk grows with the study.

        Raises:
            ConfigError: It is of other settings.
        """
        path = self.folder(job).config
        saved = ConfigParser(read_json(path), self._study.registries, source=str(path))
        new = self._study.run_config(*job)
        free, warned, refused = compare_for_resume(saved.resolved, new.resolved)
        moved = [c for c in warned if any(fnmatchcase(c[0], place) for place in _PLACES)]
        other = [*refused, *(change for change in warned if change not in moved)]
        if other:
            key, old, new = other[0]
            raise ConfigError(
                f"{self.folder(job)} was run with {key} {old!r}, the study now says {new!r}: give "
                "the study another name, or delete that folder"
            )
        return [change for change in free if change[0] in _GROWING]
