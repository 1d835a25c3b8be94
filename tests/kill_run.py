"""Kill a small run again and again, at random instants, and compare it with an unbroken one.

    python -m tests.kill_run --kills 30 --seed 0

Every second kill comes at a random time. The others come before a random file operation of a stage
(in the selection, which has none, before another event), the stages taking turns, because a run is
in some of them for milliseconds only. A killed process gets SIGKILL: nothing in it can clean up.
Whenever a run has got to its end in spite of its kills, its weights, states, selections, labels,
predictions and metrics are compared to the bit.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from med_sslal.cli import report, train
from tests.same_run import assert_same_run
from tests.tiny import files_of, make_voc, quick_config, run_train, write_config

STAGES = (
    "start",
    "train",
    "pseudo-label",
    "gate",
    "evaluate",
    "score",
    "find",
    "select",
    "label",
    "between",
    "report",
)
# The innermost of these that is being executed tells the stage.
PLACES = {
    "run": "start",
    "resume": "start",
    "CycleLoop.run": "between",
    "CycleLoop._train_in": "train",
    "CycleLoop._train": "pseudo-label",
    "CycleLoop._evaluate": "evaluate",
    "score_best": "score",
    "note_finds": "find",
    "ActiveLearningHelper.query": "select",
    # selection.json is the receipt for the labels.
    "CycleLoop._query": "label",
    "write_detections": "label",
    "write_selection": "label",
    "pseudo_label": "pseudo-label",
    "teacher_thresholds": "pseudo-label",
    "decide": "gate",
    "CycleLoop._drop_old_records": "between",
    "_write_pictures": "report",
    "write_run": "report",
}
# Loaded before a process is forked: each would take seconds to load them anew.
LOADED = (report, train)
# Kills of one run before it is left to reach its end.
KILLS_A_RUN = 5
_OPERATIONS = {
    "open",
    "os.chmod",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.scandir",
    "os.symlink",
    "tempfile.mkdtemp",
    "tempfile.mkstemp",
}
# Below an open folder these have bare names: shutil.rmtree works so.
_ANYWHERE = {"os.remove", "os.rmdir"}


# What the look at the stack itself tells of.
_OWN = {"sys._getframe", "object.__getattr__"}


class Instant(NamedTuple):
    """When to kill: before the n-th file operation of a stage, or at a time."""

    stage: str = ""
    number: int = 0
    seconds: float | None = None


def stage_of(frame: FrameType | None) -> str | None:
    """The stage in which a stack is; None outside all of them."""
    while frame is not None:
        if (stage := PLACES.get(frame.f_code.co_qualname)) is not None:
            return stage
        frame = frame.f_back
    return None


def _is_operation(event: str, args: tuple[Any, ...], folder: str) -> bool:
    """Whether an event is a file operation below a folder."""
    if event in _ANYWHERE:
        return True
    return event in _OPERATIONS and bool(args) and str(args[0]).startswith(folder)


def _child(words: list[str], folder: str, instant: Instant, end: Connection, log: str) -> None:
    """Run train.py with `words`; die at the instant, telling the stage through `end`."""
    counts: Counter[str] = Counter()

    def die(stage: str | None) -> None:
        end.send(stage)
        os.kill(os.getpid(), signal.SIGKILL)

    def operation(event: str, args: tuple[Any, ...]) -> None:
        if event in _OWN:
            return
        stage = stage_of(sys._getframe())
        # The selection computes and writes nothing: there any event that Python tells of will do.
        if stage is None or (stage != "select" and not _is_operation(event, args, folder)):
            return
        counts[stage] += 1
        if stage == instant.stage and counts[stage] == instant.number:
            die(stage)

    def clock(seconds: float, main: int) -> None:
        time.sleep(seconds)
        die(stage_of(sys._current_frames()[main]))

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if instant.seconds is not None:
        line = (instant.seconds, threading.get_ident())
        threading.Thread(target=clock, args=line, daemon=True).start()
    sys.addaudithook(operation)
    code = run_train(*words)
    end.send(dict(counts))
    sys.stdout.flush()
    os._exit(code)


class Killer:
    """Starts one config again and again, and kills it."""

    def __init__(self, folder: Path, seed: int, *, cycles: int, mode: str = "offline") -> None:
        """Make data and config in `folder`, and the run that all others are compared with."""
        config = quick_config(make_voc(folder / "voc"), folder / "runs")
        config["al_settings"]["num_cycles"] = cycles
        config["ssl_settings"]["mode"] = mode
        config["trainer"]["ema"] = mode == "mean_teacher"
        config["trainer"]["checkpoint_seconds"] = 0.2
        self._folder, self._random, self._trainings = folder, random.Random(seed), cycles + 1
        self._config = write_config(folder / "config.json", config)
        started = time.monotonic()
        self._operations = self._start("whole", ["-c", str(self._config)])
        self._seconds = time.monotonic() - started
        self._turn = 0

    def _path(self, name: str) -> Path:
        return self._folder / "runs" / "tiny" / name

    def _start(self, name: str, words: list[str], instant: Instant | None = None) -> Any:
        """One process: the stage in which it was killed, or its operations by stage."""
        ours, theirs = multiprocessing.Pipe(duplex=False)
        log = self._folder / f"{name}.log"
        line = words if "--resume" in words else [*words, "--run-id", name]
        process = multiprocessing.get_context("fork").Process(
            target=_child,
            args=(line, str(self._folder / "runs"), instant or Instant(), theirs, str(log)),
        )
        process.start()
        theirs.close()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{name} ended with {process.exitcode}:\n{log.read_text()[-3000:]}")
        return ours.recv()

    def _instant(self) -> Instant:
        """The next one: by turns a time, and an operation of the stage whose turn it is."""
        self._turn += 1
        if self._turn % 2 == 0:
            return Instant(seconds=self._random.uniform(0, self._seconds))
        stage = STAGES[self._turn // 2 % len(STAGES)]
        # A resumed process may have but one training left.
        last = max(1, self._operations[stage] // (1 if stage == "report" else self._trainings))
        return Instant(stage, self._random.randint(1, last))

    def run(self, kills: int, tell: Callable[[str], object]) -> Counter[str]:
        """Kill `kills` times, and compare every run that was killed; returns kills by stage.

        Raises:
            AssertionError: A killed run differs from the unbroken one.
        """
        hit: Counter[str] = Counter()
        number = 0
        while hit.total() < kills:
            number += 1
            name, killed = f"killed{number}", 0
            while True:
                may = killed < KILLS_A_RUN and hit.total() < kills
                # A run that was killed while it was made is not there: it is started again.
                there = self._path(name).exists()
                words = ["--resume", str(self._path(name))] if there else ["-c", str(self._config)]
                found = self._start(name, words, self._instant() if may else None)
                if isinstance(found, dict):
                    break
                killed += 1
                hit[found or "start"] += 1
                tell(f"{name}: kill {hit.total()} in stage {found or 'start'}")
            assert_same_run(self._path("whole"), self._path(name))
            left = [path for path in files_of(self._path(name)) if path.endswith(".partial")]
            assert not left, left
            tell(f"{name}: the same after {killed} kills")
        return hit


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=2, help="queries of the run")
    parser.add_argument("--mode", default="offline", help="ssl_settings.mode")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(Path(folder), args.seed, cycles=args.cycles, mode=args.mode)
        hit = killer.run(
            args.kills, lambda text: sys.stdout.write(f"{text}\n") and sys.stdout.flush()
        )
    missed = [stage for stage in STAGES if not hit[stage]]
    stages = ", ".join(f"{stage} {hit[stage]}" for stage in STAGES)
    sys.stdout.write(f"{hit.total()} kills, seed {args.seed}; by stage: {stages}\n")
    if missed:
        sys.stdout.write(f"never hit: {', '.join(missed)}\n")
    # So many kills are meant to hit every stage.
    return int(bool(missed) and args.kills >= 2 * len(STAGES))


if __name__ == "__main__":
    sys.exit(main())
