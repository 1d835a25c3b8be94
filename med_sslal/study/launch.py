"""Starting the runs of a study: one in this terminal, or all that are left, some at a time."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from med_sslal.study.study_folder import LOGS
from med_sslal.study.study_runs import Job, StudyRuns
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.util import usable_cores

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


def devices_in_turn(device: str | None, n_jobs: int) -> list[str | None]:
    """The `--device` of each run, in turn: one GPU each where there are several to share.

    Numbers in the `device` of the study are GPUs to hand out; None leaves it to the config.
    """
    if device is not None:
        return list(device.split(","))
    found = torch.cuda.device_count() if n_jobs > 1 else 0
    return [str(number) for number in range(found)] if found > 1 else [None]


def run_one(runs: StudyRuns, job: Job, device: str | None) -> int:
    """Start or continue one run in this terminal; returns its exit code.

    Raises:
        UserError: It waits for another that is not done.
    """
    left = runs.left()
    runs.record_done()
    if job not in left:
        logger.info("%s is done", job)
        return 0
    runs.prepare()
    if (first := runs.waits_for(job)) in left:
        raise UserError(f"{job} starts from cycle 0 of {first}: run that first")
    code = subprocess.run([sys.executable, *runs.command(job, device)], check=False).returncode
    if code == 0:
        runs.record(job)
    return code


def run_all(runs: StudyRuns, n_jobs: int, devices: Sequence[str | None]) -> int:
    """Run what is left, `n_jobs` at a time on `devices_in_turn`; returns the exit code.

    Raises:
        UserError: Runs failed; the others went on.
    """
    left, total = runs.left(), len(runs.jobs)
    logger.info("study %s: %d of %d runs are done", runs.root, total - len(left), total)
    runs.prepare()
    runs.record_done()
    if not left:
        return 0
    fleet = _Fleet(runs, left, n_jobs, devices)
    with StopRequest() as stop:
        try:
            while fleet.go_on():
                time.sleep(POLL_SECONDS)
                stop.check()
        except Interrupted as request:
            return request.exit_code
        finally:
            fleet.stop()
    fleet.check()
    return 0


class _Running(NamedTuple):
    """A started run."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    started: float


@dataclass
class _Fleet:
    """Runs that wait, that go on, and that have failed (with their logs)."""

    runs: StudyRuns
    left: list[Job]
    n_jobs: int
    devices: Sequence[str | None]
    running: list[_Running] = field(default_factory=list)
    failed: dict[Job, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Note when this began."""
        self.slots, self.planned = list(range(self.n_jobs)), len(self.left)
        self.started = time.monotonic()

    def go_on(self) -> bool:
        """Collect the runs that have ended and start others; False when nothing runs any more."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self.slots.append(one.slot)
            if one.process.returncode:
                self.failed[one.job] = one.log
                logger.warning("%s failed; its log is %s", one.job, one.log)
            else:
                self.runs.record(one.job)
                self._report(one)
        while self.slots and (job := self._next()) is not None:
            self.left.remove(job)
            self.running.append(self._start(job, self.slots.pop(0)))
        return bool(self.running)

    def stop(self) -> None:
        """Ask every run to save and stop, and wait until they have."""
        for one in self.running:
            one.process.terminate()
        for one in self.running:
            one.process.wait()

    def check(self) -> None:
        """Raise UserError, naming the runs that failed, where there are any."""
        sentences = []
        for job, log in self.failed.items():
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            sentences.append(f"{job} failed ({log}): {lines[-1] if lines else 'no output'}")
        if sentences:
            n = len(self.left)
            waiting = f"; {n} runs that wait for them were not started" if n else ""
            raise UserError("\n".join(sentences) + waiting)

    def _next(self) -> Job | None:
        """The next run that waits for nothing."""
        blocked = {*(one.job for one in self.running), *self.failed, *self.left}
        return next((job for job in self.left if self.runs.waits_for(job) not in blocked), None)

    def _start(self, job: Job, slot: int) -> _Running:
        """Start a run in a process of its own."""
        log = self.runs.root / LOGS / f"{job.arm}_s{job.seed}.log"
        threads = str(max(1, usable_cores() // self.n_jobs))
        device = self.devices[slot % len(self.devices)]
        logger.info("%s: started", job)
        with log.open("ab") as stream:
            # A session of its own: Ctrl-C reaches only the study, which passes it on once.
            process = subprocess.Popen(
                [sys.executable, *self.runs.command(job, device)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={"OMP_NUM_THREADS": threads, **os.environ},
                start_new_session=True,
            )
        return _Running(job, process, log, slot, time.monotonic())

    def _report(self, one: _Running) -> None:
        """One line about a run that has ended well."""
        total, now = len(self.runs.jobs), time.monotonic()
        n_left = len(self.left) + len(self.running)
        here = self.planned - n_left - len(self.failed)
        logger.info(
            "[%d/%d] %s: done in %.1f minutes; about %.0f minutes left",
            total - self.planned + here,
            total,
            one.job,
            (now - one.started) / 60,
            (now - self.started) / here * n_left / 60,
        )
