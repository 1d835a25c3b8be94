"""Run folders: what lies where in them, in which order, and what of a run is finished.

No other module spells a file name of a run. A path is an attribute, whether the file is there or
not; a rule is a property or a method.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from med_sslal.base.checkpoint import load_checkpoint, newest_good, previous, sidecar
from med_sslal.utils.errors import CheckpointError, DataError, UserError
from med_sslal.utils.util import (
    atomic_write,
    csv_text,
    read_json,
    read_versioned,
    remove_unfinished,
    write_json,
    write_versioned,
)

SUMMARY_VERSION = 1
REPORT = "report.html"
LATEST = "latest"
SUPERVISED = "supervised"
_CYCLE, _NUMBERED = re.compile(r"cycle_(\d+)"), re.compile(r"checkpoint_epoch(\d+)\.pth")


class File:
    """A file, or a folder, of a folder: an attribute that is its path."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, folder: "Folder", kind: type) -> Path:
        return folder.path / self._name


class Folder:
    """A folder whose class lists what lies in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        """The path."""
        return str(self.path)


class ResultFolder(Folder):
    """A folder of results: that of a cycle, of `test.py` or of the command `select`."""

    metrics = File("metrics.json")  # Written last: says that an evaluation is finished.
    predictions = File("predictions.json")  # In COCO's form; on the test split, in a cycle.
    selection = File("selection.json")  # What a query took, and why.
    pictures = File("images.png")  # Of it.
    froc = File("froc.png")
    overlays = File("overlays.png")  # The best and the worst images of an evaluation.


class CycleFolder(ResultFolder):
    """The folder `cycle_NN` of a run."""

    pool = File("pool.json")  # Labelled and unlabelled ids of its training.
    training = File("training.json")  # Outcome of the training; says that it has ended.
    timing = File("timing.json")  # Seconds of the stages after it.
    val_predictions = File("predictions_val.json")
    detections = File("selection_detections.json")  # On the images that a report shows.
    pseudo_labels = File("pseudo_labels.json")  # Of the student's training.
    gate = File("gate.json")  # Whether the student goes on; says that this is decided.
    rejected = File("training_rejected.json")  # Outcome of a student's training that does not.
    record = File("record")  # The pool record, itself a folder.
    val_record = File("record_val")  # The same of the validation images.
    finds = File("finds.json")  # What the criterion finds on these.
    best = File("model_best.pth")  # Checkpoint of the best model.
    last = File("checkpoint_last.pth")  # Of the position that the training has reached.

    @classmethod
    def around(cls, path: Path) -> "CycleFolder | None":
        """The cycle of a run that `path` is, or lies in; None where it does neither."""
        for folder in (path, *list(path.parents)[:2]):
            if _CYCLE.fullmatch(folder.name) and RunFolder(folder.parent).exists:
                return cls(folder)
        return None

    @property
    def number(self) -> int:
        """0 for the training on the initial set."""
        return int(self.path.name.removeprefix("cycle_"))

    @property
    def run(self) -> "RunFolder":
        """The run that it belongs to."""
        return RunFolder(self.path.parent)

    @property
    def supervised(self) -> "CycleFolder":
        """Where a cycle with a student trains the model that makes the pseudo-labels."""
        return SupervisedFolder(self.path / SUPERVISED)

    @property
    def tensorboard(self) -> Path:
        """Where its TensorBoard files go."""
        return self.run.path / "tensorboard" / self.path.name

    @property
    def trained(self) -> bool:
        """Whether its training has ended."""
        return self.training.exists()

    @property
    def measured(self) -> bool:
        """Whether its best model is evaluated."""
        return self.metrics.exists()

    @property
    def query(self) -> Path | None:
        """The folder of its query that goes out to a person; None where there is none."""
        return next((path for path in sorted(self.path.glob("query_*")) if path.is_dir()), None)

    @property
    def queried(self) -> bool:
        """Whether its query is made: nothing before it may change any more."""
        return self.selection.exists()

    @property
    def closed(self) -> str | None:
        """Why its ended training cannot be made longer; None where it can."""
        first = self.supervised if self.supervised.trained else self
        if self.queried:
            return "its query is made"
        if not first.resumable() or (self.gate.exists() and first is self):
            return "trainer.keep_checkpoints left nothing that it could go on from"
        return None

    @property
    def planned(self) -> str:
        """How long its ended training, or that on labels before a student's, was to be."""
        ended = self if self.trained else self.supervised
        return str(read_json(ended.training)["planned"])

    @property
    def until_measured(self) -> tuple[Path, ...]:
        """The small files of a cycle that is measured; the last one says that it is."""
        student = (self.pseudo_labels, self.gate, self.rejected)
        predicted = (self.predictions, self.val_predictions)
        return (self.pool, self.timing, *student, *predicted, self.training, self.metrics)

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints, previous copies too."""
        return sorted(self.path.glob("*.pth"))

    def numbered(self, epoch: int) -> Path:
        """Where the checkpoint of an epoch goes that `trainer.save_period` asks for."""
        return self.path / f"checkpoint_epoch{epoch:02d}.pth"

    def resumable(self) -> list[Path]:
        """Checkpoints that hold a training state: the position, then the numbered ones.

        A numbered one may be `trainer.checkpoint_seconds` further than the position.
        """
        found = [(_NUMBERED.fullmatch(path.name), path) for path in self.checkpoints]
        numbered = sorted(((int(name[1]), path) for name, path in found if name), reverse=True)
        places = (self.last, previous(self.last), *(path for _, path in numbered))
        return [path for path in places if path.is_file()]

    def drop_numbered(self) -> None:
        """Remove numbered checkpoints and previous copies: nothing comes back to them."""
        # Of a numbered one saved twice, after a resume, the previous copy is of both kinds.
        for path in {*self.path.glob("checkpoint_epoch*"), *self.path.glob("*_previous.pth*")}:
            path.unlink()

    def drop_last(self) -> None:
        """Remove the position: the training has ended."""
        for path in (self.last, sidecar(self.last)):
            path.unlink(missing_ok=True)

    def drop_records(self) -> None:
        """Remove the records of pool and validation images, where there are any."""
        for record in (self.val_record, self.record):
            if record.exists():
                shutil.rmtree(record)

    def load_best(self) -> dict[str, Any]:
        """The content of `best`, once the training has ended.

        Raises:
            CheckpointError: It is damaged or missing.
        """
        try:
            return load_checkpoint(self.best)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. Remove {self.path} and the cycles after it: --resume trains them anew"
            ) from error

    def note_seconds(self, stage: str, seconds: float, *, more: bool = False) -> None:
        """Note how long a stage took, or `more` of it, on top of the first part.

        The training is not among the stages: it may be resumed, and its own outcome has the sum.
        """
        before = read_json(self.timing)["seconds"] if self.timing.exists() else {}
        seconds += before.get(stage, 0.0) if more else 0.0
        write_json(self.timing, {"seconds": {**before, stage: round(seconds, 3)}})

    def take_supervised(self) -> None:
        """Put the supervised model and what it saw in the student's place; again does no harm."""
        before = self.supervised
        done = self.trained and self.training.read_bytes() == before.training.read_bytes()
        if self.trained and not done and not self.rejected.exists():
            self.training.rename(self.rejected)
        pairs = (
            (self.training, before.training),
            (sidecar(self.best), sidecar(before.best)),
            (self.best, before.best),
        )
        for own, old in pairs:
            atomic_write(own, old.read_bytes())
        if before.record.exists():
            before.record.rename(self.record)

    def reopen(self) -> None:
        """Remove the outcomes of an ended training that goes on; a student will start anew."""
        outcomes = [self.metrics, self.finds, self.val_predictions]
        if self.supervised.path.exists():
            outcomes += [self.gate, self.rejected, self.pseudo_labels]
            outcomes += self.path.glob("*.pth*")
        for path in outcomes:
            path.unlink(missing_ok=True)
        self.drop_records()
        # Last, and that of the training on labels very last: a stop finds the same case again.
        self.training.unlink(missing_ok=True)
        if self.supervised.path.exists():
            self.supervised.reopen()


class SupervisedFolder(CycleFolder):
    """The folder `supervised` of a cycle: the training on labels alone, and what it sees."""

    @property
    def number(self) -> int:
        """That of the cycle."""
        return CycleFolder(self.path.parent).number

    @property
    def run(self) -> "RunFolder":
        """The run that it belongs to."""
        return CycleFolder(self.path.parent).run

    @property
    def tensorboard(self) -> Path:
        """Where its TensorBoard files go."""
        return CycleFolder(self.path.parent).tensorboard / SUPERVISED


class RunFolder(Folder):
    """The folder of a run."""

    config = File("config.json")  # As resolved; what has none is no run folder.
    split = File("split.json")  # Ids by split.
    initial = File("initial.pth")  # Checkpoint of the weights that every cycle starts from.
    initial_selection = File("initial_selection.json")  # Where it was picked and not drawn.
    initial_record = File("initial_record")  # What it is picked from, while it is.
    environment = File("environment.json")  # Versions, processor, device and threads.
    log = File("train.log")  # What was logged from DEBUG on, since it was opened.
    summary = File("summary.json")  # The table of its cycles, and whether it is finished.
    table = File("results.csv")  # The table alone.
    report = File(REPORT)  # Its page.
    learning_curve = File("learning_curve.png")
    answers = File("answers.jsonl")  # The journal of what a person answered.

    @property
    def exists(self) -> bool:
        """Whether it is a run folder."""
        return self.config.is_file()

    @property
    def finished(self) -> bool:
        """Whether no cycle follows those that are there, and none of them trains on."""
        if not self.summary.is_file():
            return False
        summary = self.read_summary()
        last = summary["cycles"][-1:]
        return summary["finished"] and all(self.cycle(row["cycle"]).measured for row in last)

    def cycle(self, number: int) -> CycleFolder:
        """The folder of a cycle, made or not."""
        return CycleFolder(self.path / f"cycle_{number:02d}")

    def cycles(self) -> list[CycleFolder]:
        """The folders of cycles that are there, by number."""
        found = [path for path in self.path.glob("cycle_*") if _CYCLE.fullmatch(path.name)]
        return sorted(map(CycleFolder, found), key=lambda cycle: cycle.number)

    def begun(self) -> list[CycleFolder]:
        """Those that have a pool, by number."""
        return [cycle for cycle in self.cycles() if cycle.pool.is_file()]

    def write_summary(self, rows: Sequence[Mapping[str, Any]], *, finished: bool) -> None:
        """Write the rows of the measured cycles to `summary` and `table`."""
        content = {"finished": finished, "cycles": list(rows)}
        write_versioned(self.summary, SUMMARY_VERSION, content)
        atomic_write(self.table, csv_text(rows).encode())

    def read_summary(self) -> dict[str, Any]:
        """What `write_summary` wrote: `finished` and `cycles`.

        Raises:
            DataError: It is missing, damaged, or written by a newer version.
        """
        content = read_versioned(self.summary, SUMMARY_VERSION)
        rows = content.get("cycles")
        is_table = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        if not isinstance(content.get("finished"), bool) or not is_table:
            raise DataError(f"{self.summary} is no summary of a run")
        return content

    def finished_best(self) -> tuple[Path, dict[str, Any], list[str]]:
        """Path and content of the best checkpoint of the last cycle whose training has ended.

        A damaged one is passed over for that of the cycle before, with one sentence for each.

        Raises:
            CheckpointError: No cycle is that far, or no such checkpoint is good.
        """
        done = {cycle.best: cycle for cycle in self.cycles()[::-1] if cycle.trained}
        if not done:
            raise CheckpointError(f"no cycle of {self} is finished yet: continue it with --resume")
        return newest_good(list(done), load=lambda path: done[path].load_best())

    def clear_unfinished(self) -> None:
        """Remove the half-written files that a killed process left.

        Raises:
            UserError: The folder cannot be written.
        """
        try:
            cycles = self.cycles()
            parts = (self, *cycles, *(cycle.supervised for cycle in cycles))
            queries = (cycle.query for cycle in cycles)
            for path in (*(part.path for part in parts), *queries):
                if path is not None and path.is_dir():
                    remove_unfinished(path)
        except OSError as error:
            raise UserError(f"cannot write {error.filename}: {error.strerror}") from error


def named_path(name: str, save_dir: Path = Path("exp_results")) -> Path:
    """What a user means: a path, or the word `latest` for the newest run of `save_dir`.

    Raises:
        CheckpointError: It has no newest run.
    """
    if name != LATEST:
        return Path(name)
    path = save_dir / LATEST
    if not path.exists():
        raise CheckpointError(
            f"there is no run folder {path.absolute()}, where alone '{LATEST}' is looked for: give "
            "the path of a run folder, which lies where trainer.save_dir of its config says"
        )
    return path


def find_run(name: str, save_dir: Path) -> tuple[RunFolder, Path | None]:
    """The run of a checkpoint, a run folder or `latest` (of `save_dir`); a named checkpoint, too.

    Raises:
        CheckpointError: There is nothing of the kind.
    """
    where = named_path(name, save_dir)
    if where.is_dir():
        run = RunFolder(where.resolve())
        if not run.exists:
            raise CheckpointError(f"{name} is no run folder: it has no {run.config.name}")
        return run, None
    if where.is_file():
        cycle = CycleFolder.around(where.resolve())
        return cycle.run if cycle else RunFolder(where.resolve().parent.parent), where
    raise CheckpointError(f"there is no checkpoint or run folder {where}")


def load_named(path: Path, *, require_checksum: bool = True) -> dict[str, Any]:
    """Read a checkpoint that the command line names: nothing stands in for a bad one.

    Raises:
        CheckpointError: As of `load_checkpoint`, with what to do.
    """
    try:
        return load_checkpoint(path, require_checksum=require_checksum)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; name another one, or the run folder for its newest good one"
        ) from error
