"""The runs of a study: what is done, what is left, and how one is started or continued."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch

import med_sslal
from med_sslal.base.base_trainer import BEST
from med_sslal.cli.build import build_dataset, build_setup, devices_of
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import Change, compare_for_resume
from med_sslal.config.study import SHARED, StudyConfig
from med_sslal.config.validate import Registries
from med_sslal.eval.metric import metric_keys
from med_sslal.utils.errors import ConfigError, UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# Differences to a run on disk that leave the comparison as it is: where it runs, not what.
_PLACES = ("n_gpu", "dataset.args.root", "dataset.args.cache*")


class Job(NamedTuple):
    """One run of a study; as text `arm/s0`."""

    arm: str
    seed: int

    def __str__(self) -> str:
        """The run's folder inside the study's."""
        return f"{self.arm}/s{self.seed}"


@dataclass
class _Running:
    """A started run."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    started: float


class StudyRuns:
    """The runs of one study, each an ordinary run in its own folder and process.

    The trainings of cycle 0 are made once per seed, as the runs of an arm `cycle0`; every arm but
    full supervision takes them over.
    """

    def __init__(self, study: StudyConfig, registries: Registries, device: str | None) -> None:
        """Prepare; nothing is started.

        Args:
            study: The checked study.
            registries: As for ConfigParser.
            device: `--device` of every run; several numbers are one GPU for each run.
        """
        self._study, self._registries, self._device = study, registries, device

    @property
    def jobs(self) -> list[Job]:
        """All runs, by seed; those that others wait for come first."""
        study, arms = self._study, list(self._study.arms)
        shared = [SHARED] if any(arm != study.full for arm in arms) else []
        return [
            *(Job(arm, seed) for seed in study.seeds for arm in shared),
            *(Job(arm, seed) for seed in study.seeds for arm in arms),
        ]

    def folder(self, job: Job) -> Path:
        """Where a run lies."""
        return self._study.folder / str(job)

    def left(self) -> list[Job]:
        """The runs that are not done.

        Raises:
            ConfigError: A run on disk is of other settings than the study's.
        """
        left = [job for job in self.jobs if not self._done(job)]
        waiting = {job.seed for job in left if self._needs_shared(job)}
        # Of a finished cycle 0 only the small files may be left, which is enough for the table.
        return [
            job
            for job in self.jobs
            if job in left or (job.arm == SHARED and job.seed in waiting and self._emptied(job))
        ]

    def check(self) -> None:
        """Build what every arm needs once: what is wrong shows before the first training.

        Raises:
            UserError: A setting does not fit the data.
        """
        dataset = None
        for arm in self._study.arms:
            config = self._config(Job(arm, self._study.seeds[0]))
            # Arms differ in no key of the data, so one data set serves all.
            dataset = dataset or build_dataset(config)
            build_setup(config, dataset, devices_of(config, "cpu"), show_progress=False)
            keys = metric_keys(config["metrics"], dataset.labels.class_names)
            known = sorted(f"test_{key}" for key in keys)
            if self._study.metric not in known:
                raise ConfigError(
                    f"{self._study.source} metric: no value '{self._study.metric}'; there are "
                    f"{', '.join(known)}"
                )

    def run_one(self, name: str) -> int:
        """Start or continue one run in this terminal; returns its exit code.

        Args:
            name: Such as `random/s0`.

        Raises:
            UserError: There is no such run, or it waits for another that is not done.
        """
        job = next((job for job in self.jobs if str(job) == name), None)
        if job is None:
            known = ", ".join(map(str, self.jobs))
            raise ConfigError(f"--only: there is no run '{name}'; there are {known}")
        if job not in self.left():
            logger.info("%s is done", job)
            return 0
        self._prepare()
        if self._needs_shared(job) and Job(SHARED, job.seed) in self.left():
            raise UserError(f"{job} starts from cycle 0 of {Job(SHARED, job.seed)}: run that first")
        command = [sys.executable, *self._command(job, self._device)]
        return subprocess.run(command, check=False).returncode

    def run_all(self, n_jobs: int) -> int:
        """Run what is left, `n_jobs` at a time; returns the exit code.

        Raises:
            UserError: Runs failed; the others went on.
        """
        left = self.left()
        total = len(self.jobs)
        done = before = total - len(left)
        logger.info("study %s: %d of %d runs are done", self._study.folder, done, total)
        if not left:
            return 0
        self._prepare()
        slots = list(range(n_jobs))
        running: list[_Running] = []
        failed: dict[Job, Path] = {}
        started = time.monotonic()
        with StopRequest() as stop:
            try:
                while left or running:
                    stop.check()
                    while slots and (job := self._next(left, running, failed)) is not None:
                        left.remove(job)
                        running.append(self._start(job, slots.pop(0), n_jobs))
                    for one in [one for one in running if one.process.poll() is not None]:
                        running.remove(one)
                        slots.append(one.slot)
                        if one.process.returncode:
                            failed[one.job] = one.log
                            logger.warning("%s failed; its log is %s", one.job, one.log)
                            continue
                        done += 1
                        pace = (time.monotonic() - started) / (done - before)
                        self._report(one, done, total, pace, len(left) + len(running))
                    if not running and self._next(left, running, failed) is None:
                        break
                    time.sleep(POLL_SECONDS)
            except Interrupted as request:
                self._stop_all(running)
                return request.exit_code
            except BaseException:
                self._stop_all(running)
                raise
        return self._outcome(failed, left)

    def _config(self, job: Job) -> ConfigParser:
        """The config of a run."""
        return self._study.run_config(job.arm, job.seed, self._registries)

    def _needs_shared(self, job: Job) -> bool:
        """Whether a run takes over the training of cycle 0 when it starts."""
        if job.arm in (SHARED, self._study.full):
            return False
        return not (self.folder(job) / "config.json").is_file()

    def _emptied(self, job: Job) -> bool:
        """Whether the weights of a finished cycle 0 are gone."""
        return not (self.folder(job) / "cycle_00" / BEST).is_file()

    def _done(self, job: Job) -> bool:
        """Whether a run has finished with these settings."""
        folder = self.folder(job)
        if not (folder / "config.json").is_file() or not (folder / "summary.json").is_file():
            return False
        return bool(read_json(folder / "summary.json")["finished"]) and not self._changes(job)

    def _changes(self, job: Job) -> list[Change]:
        """What of a run on disk grows with the study.

        Raises:
            ConfigError: It is of other settings.
        """
        path = self.folder(job) / "config.json"
        saved = ConfigParser.from_dict(read_json(path), self._registries, source=str(path))
        free, warned, refused = compare_for_resume(saved.resolved, self._config(job).resolved)
        moved = [c for c in warned if any(fnmatchcase(c[0], place) for place in _PLACES)]
        other = [*refused, *(change for change in warned if change not in moved)]
        if other:
            key, old, new = other[0]
            raise ConfigError(
                f"{self.folder(job)} was run with {key} {old!r}, the study now says {new!r}: give "
                "the study another name, or delete that folder"
            )
        return [c for c in free if c[0] in ("trainer.steps_per_cycle", "al_settings.num_cycles")]

    def _prepare(self) -> None:
        """Write what the study is; the report reads it."""
        study = self._study
        folder = study.folder
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
        content = {
            "format_version": 1,
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
        write_json(folder / "study.json", content)

    def _command(self, job: Job, device: str | None) -> list[str]:
        """Words after `python` that start or continue a run."""
        folder, config = self.folder(job), self._config(job)
        program = Path(med_sslal.__file__).resolve().parent.parent / "train.py"
        words = [str(program)]
        if (folder / "config.json").is_file():
            words += ["--resume", str(folder)]
            for key, _, new in self._changes(job):
                words += ["--set", f"{key}={json.dumps(new)}"]
        else:
            path = self._study.folder / "configs" / f"{job.arm}_s{job.seed}.json"
            write_json(path, config.resolved)
            words += ["-c", str(path), "--run-id", folder.name]
            if self._needs_shared(job):
                words += ["--cycle0-from", str(self.folder(Job(SHARED, job.seed)))]
        return words if device is None else [*words, "--device", device]

    def _next(
        self, left: Sequence[Job], running: Sequence[_Running], failed: dict[Job, Path]
    ) -> Job | None:
        """The next run that waits for nothing; by seed, so that pairs get complete early."""
        blocked = {one.job for one in running} | set(failed) | set(left)
        ready = [
            job
            for job in left
            if not self._needs_shared(job) or Job(SHARED, job.seed) not in blocked
        ]
        return min(ready, key=lambda job: self._study.seeds.index(job.seed), default=None)

    def _start(self, job: Job, slot: int, n_jobs: int) -> _Running:
        """Start a run in a process of its own."""
        log = self._study.folder / "logs" / f"{job.arm}_s{job.seed}.log"
        environment = dict(os.environ)
        cores = len(os.sched_getaffinity(0))
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // n_jobs)))
        command = [sys.executable, *self._command(job, self._slot_device(slot, n_jobs))]
        logger.info("%s: started", job)
        with log.open("ab") as stream:
            # A session of its own: Ctrl-C reaches only the study, which passes it on once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return _Running(job, process, log, slot, time.monotonic())

    def _slot_device(self, slot: int, n_jobs: int) -> str | None:
        """One GPU for each run where there are several; else what `--device` says."""
        if self._device in ("cpu", "cuda"):
            return self._device
        if self._device is not None:
            numbers = self._device.split(",")
            return numbers[slot % len(numbers)]
        found = torch.cuda.device_count()
        return str(slot % found) if found > 1 and n_jobs > 1 else None

    def _report(self, one: _Running, done: int, total: int, pace: float, n_left: int) -> None:
        """One line about a run that has ended."""
        logger.info(
            "[%d/%d] %s: done in %.1f minutes; about %.0f minutes left",
            done,
            total,
            one.job,
            (time.monotonic() - one.started) / 60,
            pace * n_left / 60,
        )

    def _stop_all(self, running: Sequence[_Running]) -> None:
        """Ask every run to save and stop, and wait until they have."""
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()

    def _outcome(self, failed: dict[Job, Path], left: Sequence[Job]) -> int:
        """0, or an error that names the runs that failed."""
        if not failed:
            return 0
        sentences = []
        for job, log in failed.items():
            lines: list[Any] = log.read_text(encoding="utf-8", errors="replace").splitlines()
            sentences.append(f"{job} failed ({log}): {lines[-1] if lines else 'no output'}")
        waiting = f"; {len(left)} runs that wait for them were not started" if left else ""
        raise UserError("\n".join(sentences) + waiting)
