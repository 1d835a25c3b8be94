"""The table of a run, a row for each cycle."""

import logging
from collections.abc import Mapping
from typing import Any

from med_sslal.base.types import Annotation, Prediction
from med_sslal.eval.metric import evaluate
from med_sslal.logger.visualization import TensorboardWriter
from med_sslal.practice.oracle import HumanOracle
from med_sslal.ssl.pseudo_labels import PseudoLabels
from med_sslal.ssl.quality import hidden_truth_quality
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.util import read_json, write_json

logger = logging.getLogger(__name__)


def write_metrics(
    setup: RunSetup,
    folder: CycleFolder,
    labels: Mapping[str, Annotation],
    pseudo: PseudoLabels | None,
    results: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Write `metrics.json` of a cycle that trained on `labels` and `pseudo`.

    `results` is what `measured` gave by split, and `seconds` how long that took. Returns the
    cycle's line of the table.
    """
    training, quality = read_json(folder.training), _pseudo_quality(setup, folder.number, pseudo)
    later = _later_quality(setup, folder, labels)
    n_boxes = sum(label.n_objects for label in labels.values())
    added = pseudo.labels if pseudo else {}
    values = {
        f"{split}_{name}": value
        for split in ("val", "test")
        for name, value in results[split]["values"].items()
    }
    # The stages of the student count: whatever they cost is time that this model took.
    stages = read_json(folder.timing)["seconds"] if folder.timing.exists() else {}
    seconds += sum(stages.get(name, 0.0) for name in ("other_training", "pseudo_labels", "gate"))
    found = [each["precision"] for each in quality.values() if each["precision"] is not None]
    interval = results["test"]["intervals"].get("sens_mean") or (None, None)
    row = {
        "cycle": folder.number,
        "labelled_images": len(labels),
        "labelled_boxes": n_boxes,
        "labelled_seconds": round(setup.strategy.helper.costs.seconds(len(labels), n_boxes), 1),
        "pseudo_images": len(added),
        "pseudo_boxes": sum(label.n_objects for label in added.values()),
        "pseudo_precision": sum(found) / len(found) if found else None,
        "pseudo_accepted": read_json(folder.gate)["accepted"] if folder.gate.exists() else None,
        "steps": training["steps"],
        "best_epoch": training["best_epoch"],
        **values,
        "test_sens_mean_low": interval[0],
        "test_sens_mean_high": interval[1],
        "minutes": round((training["seconds"] + seconds) / 60, 3),
    }
    graded = {"pseudo_quality": quality, "earlier_pseudo_quality": later}
    _show(setup, folder, row, pseudo, quality)
    write_json(folder.metrics, {"row": row, **results, **graded})
    return row


def _show(
    setup: RunSetup,
    folder: CycleFolder,
    row: Mapping[str, Any],
    pseudo: PseudoLabels | None,
    quality: Mapping[str, Mapping[str, float | None]],
) -> None:
    """Write what is known of a cycle to TensorBoard, over the cycles."""
    values = {key: value for key, value in row.items() if key.startswith(("val_", "test_"))}
    for name, stats in pseudo.stats.items() if pseudo else ():
        per_image = stats.count / len(pseudo.labels) if pseudo and pseudo.labels else 0.0
        counted = {"boxes_per_image": per_image, "threshold": stats.threshold}
        each = {**counted, **quality.get(name, {})}
        values |= {f"pseudo_labels/{key}/{name}": value for key, value in each.items()}
    if row["pseudo_accepted"] is not None:
        verdict = read_json(folder.gate)
        values |= {f"gate/{key}": verdict[key] for key in ("supervised", "student", "accepted")}
    where = folder.run.path / "tensorboard" / "cycles"
    with TensorboardWriter(where, enabled=setup.settings.tensorboard) as writer:
        writer.hide_from(folder.number)
        writer.scalars(values, folder.number)


def measured(
    setup: RunSetup, found: Mapping[str, Prediction], loss: float | None, split: str
) -> dict[str, Any]:
    """What `evaluate` says of the predictions of a split, the loss among the values."""
    labels, infos = setup.split_labels(split), setup.images.infos
    result = evaluate(setup.metrics, found, labels, infos, setup.class_names, seed=setup.seed)
    result["values"]["loss"] = loss
    return result


def _pseudo_quality(
    setup: RunSetup, number: int, pseudo: PseudoLabels | None
) -> dict[str, dict[str, float | None]]:
    """Precision and recall of a cycle's pseudo-labels by class, from an audit of hidden labels.

    It is written down and used for nothing: this is what a simulation can know.
    """
    if pseudo is None or setup.strategy.ssl.oracle:
        return {}
    truth = setup.strategy.oracle.audit(pseudo.labels)
    return _graded(setup, f"cycle {number}: pseudo-labels", pseudo, truth)


def _later_quality(
    setup: RunSetup, folder: CycleFolder, labels: Mapping[str, Annotation]
) -> dict[str, dict[str, float | None]]:
    """The same of the cycle before, by the labels that have come since then.

    In practice nothing else can tell; these images were asked for, so they are no fair sample.
    """
    before = folder.run.cycle(folder.number - 1).pseudo_labels
    if not isinstance(setup.strategy.oracle, HumanOracle) or not before.exists():
        return {}
    pseudo = PseudoLabels.read(before)
    n = len(pseudo.labels.keys() & labels.keys())
    text = f"cycle {folder.number - 1}: pseudo-labels, by the labels of {n} images that came later,"
    return _graded(setup, text, pseudo, labels)


def _graded(
    setup: RunSetup, text: str, pseudo: PseudoLabels, truth: Mapping[str, Annotation]
) -> dict[str, dict[str, float | None]]:
    """What the truth says of pseudo-labels, by class; `text` begins the lines of the log."""
    found = hidden_truth_quality(pseudo.labels, truth, setup.class_names)
    for name, quality in found.items():
        known = {key: value for key, value in quality._asdict().items() if value is not None}
        if known:
            told = ", ".join(f"{key} {value:.3f}" for key, value in known.items())
            logger.info("%s of %s: %s", text, name, told)
    return {name: quality._asdict() for name, quality in found.items()}
