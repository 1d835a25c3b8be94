"""Starting the runs of a study: one in this terminal, or all that are left, some at a time."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

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

    UserError where it waits for another that is not done.
    """
    left = runs.left()
    runs.record(*runs.jobs)
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

    UserError where runs failed, after the others have ended.
    """
    left, total = runs.left(), len(runs.jobs)
    logger.info("study %s: %d of %d runs are done", runs.root, total - len(left), total)
    runs.prepare()
    runs.record(*runs.jobs)
    began, n_here = time.monotonic(), 0
    free = [devices[slot % len(devices)] for slot in range(n_jobs)]
    running: list[_Running] = []
    failed: list[Job] = []
    with StopRequest() as stop:
        try:
            while True:
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    free.append(one.device)
                    if one.process.returncode:
                        failed.append(one.job)
                        logger.warning("%s failed; its log is %s", one.job, runs.log(one.job))
                        continue
                    runs.record(one.job)
                    n_here, now = n_here + 1, time.monotonic()
                    n_left = len(left) + len(running)
                    logger.info(
                        "[%d/%d] %s: done in %.1f minutes; about %.0f minutes left",
                        total - n_left - len(failed),
                        total,
                        one.job,
                        (now - one.started) / 60,
                        (now - began) / n_here * n_left / 60,
                    )
                while free and (job := _next(runs, left, running, failed)) is not None:
                    left.remove(job)
                    running.append(_start(runs, job, free.pop(0), n_jobs))
                if not running:
                    break
                time.sleep(POLL_SECONDS)
                stop.check()
        except Interrupted as request:
            return request.exit_code
        finally:
            # Every run saves before it stops.
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
    if failed:
        raise _failure(runs, failed, len(left))
    return 0


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes]
    device: str | None
    started: float


def _next(
    runs: StudyRuns, left: list[Job], running: list[_Running], failed: list[Job]
) -> Job | None:
    """The next run that waits for nothing."""
    blocked = {*(one.job for one in running), *failed, *left}
    return next((job for job in left if runs.waits_for(job) not in blocked), None)


def _start(runs: StudyRuns, job: Job, device: str | None, n_jobs: int) -> _Running:
    """Start a run in a process of its own."""
    logger.info("%s: started", job)
    with runs.log(job).open("ab") as stream:
        # A session of its own: Ctrl-C reaches only the study, which passes it on once.
        process = subprocess.Popen(
            [sys.executable, *runs.command(job, device)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(max(1, usable_cores() // n_jobs)), **os.environ},
            start_new_session=True,
        )
    return _Running(job, process, device, time.monotonic())


def _failure(runs: StudyRuns, failed: list[Job], n_waiting: int) -> UserError:
    sentences = []
    for job in failed:
        lines = runs.log(job).read_text(encoding="utf-8", errors="replace").splitlines()
        last = lines[-1] if lines else "no output"
        sentences.append(f"{job} failed ({runs.log(job)}): {last}")
    waiting = f"; {n_waiting} runs that wait for them were not started" if n_waiting else ""
    return UserError("\n".join(sentences) + waiting)
