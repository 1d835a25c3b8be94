"""What a run folder holds, read for its report: whatever is there of a run, finished or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from med_sslal.al.finds import Finds, read_finds
from med_sslal.al.pool import Pool
from med_sslal.al.schedule import strategy_name
from med_sslal.al.selection_io import read_selection
from med_sslal.base.base_dataset import BaseDataset, Labels
from med_sslal.base.types import Prediction, Selection
from med_sslal.eval.coco_utils import from_coco_predictions
from med_sslal.practice.corrections import Corrections, corrections
from med_sslal.practice.journal import read_journal
from med_sslal.practice.query_folder import read_query
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.trainer.run_folder import CycleFolder, RunFolder
from med_sslal.utils.errors import DataError
from med_sslal.utils.util import read_json


@dataclass(frozen=True)
class CycleData:
    """The files of one cycle; None (or empty) for what is not there."""

    number: int
    pool: Pool  # Labelled and unlabelled images of its training.
    row: Mapping[str, Any] | None  # Its line of the summary.
    test: Mapping[str, Any] | None  # What `eval.metric.evaluate` returned for the test split.
    seconds: Mapping[str, float]  # Stage to seconds, the training's among them.
    finds: Finds | None  # What its criterion finds on the validation images.
    selection: Selection | None  # What was chosen at its end.
    corrections: Corrections | None  # What readers did with it; None where nobody has answered.
    # Image id to the detections worth showing, of images taken and of some others.
    detections: Mapping[str, Prediction]
    # Class name to precision, recall and mean IoU of the pseudo-labels of its training; and the
    # same of the cycle before, by labels that came since.
    pseudo_quality: Mapping[str, Mapping[str, float | None]]
    earlier_pseudo_quality: Mapping[str, Mapping[str, float | None]]
    # The student's last epoch with a mean teacher; empty without one.
    taught: Mapping[str, float | None]
    pseudo: PseudoLabels | None  # What its student learned from.
    gate: Mapping[str, Any] | None  # Whether the student went on, and why; None without one.
    predictions_file: Path | None  # Detections on the test split.

    def predictions(self, class_names: Sequence[str]) -> dict[str, Prediction]:
        """Detections on the test split; large, so read when asked for.

        Raises:
            DataError: The file is damaged.
        """
        assert self.predictions_file is not None
        return from_coco_predictions(read_json(self.predictions_file), class_names)


@dataclass(frozen=True)
class RunData:
    """A run, for its report."""

    folder: RunFolder
    config: Mapping[str, Any]
    environment: Mapping[str, Any]  # Empty where the run has written none yet.
    cycles: tuple[CycleData, ...]
    # Its images and the labels that it has used; None where they cannot be had.
    dataset: BaseDataset | None
    # Dotted key, value and default of what the config changes; None where these cannot be had.
    differences: tuple[tuple[str, Any, Any], ...] | None
    ended: bool  # Whether the run says that no cycle follows.
    remarks: tuple[str, ...]  # Why something is missing, one sentence each.

    @property
    def rows(self) -> list[Mapping[str, Any]]:
        """The summary: one line per measured cycle."""
        return [cycle.row for cycle in self.cycles if cycle.row is not None]

    @property
    def n_cycles(self) -> int:
        """Queries that were planned."""
        return int(self.config["al_settings"]["num_cycles"])

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, with as many cycles as were planned or fewer."""
        return self.ended and bool(self.cycles) and self.cycles[-1].row is not None

    @property
    def seconds(self) -> float:
        """Seconds of all stages of all cycles."""
        return sum(sum(cycle.seconds.values()) for cycle in self.cycles)

    @property
    def resampled(self) -> str:
        """What the bootstrap of test metrics draws: patients, or images where there are none."""
        if self.dataset is None:
            return "test patients (images where the data names no patient)"
        infos = self.dataset.images.infos
        alone = all(infos[name].group_id == name for name in self.dataset.images.splits["test"])
        return "test images" if alone else "test patients"

    @property
    def strategy(self) -> str:
        """The criteria in order of use, as one name."""
        return strategy_name(self.config["al_settings"].get("args", {})) or "own helper"


def load_run(
    folder: RunFolder,
    dataset: BaseDataset | None,
    differences: list[tuple[str, Any, Any]] | None,
    remarks: tuple[str, ...] = (),
) -> RunData:
    """Read a run folder; a DataError where a file is damaged.

    The `dataset` is the run's, None where it cannot be had; labels that the run has not used are
    left behind. The `differences` are those of its `ConfigParser`, None likewise, and the `remarks`
    say why.
    """
    config = read_json(folder.config)
    names = dataset.labels.class_names if dataset is not None else None
    cycles = [_load_cycle(cycle, names) for cycle in folder.begun()]
    return RunData(
        folder=folder,
        config=config,
        environment=_optional(folder.environment) or {},
        cycles=tuple(cycles),
        dataset=dataset and _used(dataset, cycles),
        differences=None if differences is None else tuple(differences),
        ended=folder.finished,
        remarks=remarks,
    )


def _used(dataset: BaseDataset, cycles: Sequence[CycleData]) -> BaseDataset:
    """The data set with the labels that a run has bought, and those of val and test."""
    splits = dataset.images.splits
    ids = (*splits["val"], *splits["test"], *(cycles[-1].pool.labelled if cycles else ()))
    if cycles and cycles[-1].selection is not None:
        ids += cycles[-1].selection.image_ids
    known = dataset.labels.annotations
    kept = {image_id: known[image_id] for image_id in ids if image_id in known}
    return BaseDataset(dataset.images, Labels(dataset.labels.class_names, kept))


def _optional(path: Path) -> Any:
    """The content of a JSON file, None where there is none."""
    return read_json(path) if path.exists() else None


def _load_cycle(folder: CycleFolder, class_names: tuple[str, ...] | None) -> CycleData:
    try:
        pool = Pool(**read_json(folder.pool))
        metrics = _optional(folder.metrics) or {}
        training = _optional(folder.training)
        timing = _optional(folder.timing) or {"seconds": {}}
        seconds = {"training": training["seconds"]} if training else {}
        row = metrics.get("row")
        if row and training and "evaluation" not in timing["seconds"]:
            # Runs of before there was a stopwatch; minutes are those of both.
            seconds["evaluation"] = max(0.0, 60 * row["minutes"] - training["seconds"])
        seconds |= timing["seconds"]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"the files in {folder.path} are not those of a cycle: {error!r}"
        ) from error
    pseudo, shown = folder.pseudo_labels, _optional(folder.detections) if class_names else None
    return CycleData(
        number=folder.number,
        pool=pool,
        row=row,
        test=metrics.get("test"),
        seconds=seconds,
        finds=read_finds(folder.finds) if folder.finds.exists() else None,
        selection=read_selection(folder.selection) if folder.queried else None,
        corrections=_corrections(folder),
        detections=from_coco_predictions(shown, class_names) if shown and class_names else {},
        pseudo_quality=metrics.get("pseudo_quality", {}),
        earlier_pseudo_quality=metrics.get("earlier_pseudo_quality", {}),
        taught=_taught(_optional(folder.rejected) or training or {}),
        pseudo=PseudoLabels.read(pseudo) if pseudo.exists() else None,
        gate=_optional(folder.gate),
        predictions_file=folder.predictions if folder.predictions.exists() and metrics else None,
    )


def _taught(training: Mapping[str, Any]) -> Mapping[str, float | None]:
    """The values of the last epoch of a training that had a mean teacher."""
    epochs = [values for values in training.get("history", ()) if "teacher_boxes" in values]
    return epochs[-1] if epochs else {}


def _corrections(folder: CycleFolder) -> Corrections | None:
    if folder.query is None:
        return None
    query = read_query(folder.query)
    told = read_journal(folder.run.answers, query.class_names).of(query.query_id)
    return corrections(query, told.standing()) if told.imports else None
