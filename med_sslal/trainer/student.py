"""The second half of a semi-supervised cycle: pseudo-labels, and whether their student goes on."""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN
from med_sslal.base.types import Annotation, Prediction
from med_sslal.eval.coco_utils import from_coco_predictions, to_coco_predictions
from med_sslal.eval.metric import evaluate, metric_keys
from med_sslal.ssl.pseudo_labels import PseudoLabeller, PseudoLabels
from med_sslal.ssl.quality import unmatched
from med_sslal.trainer.inference import header_of, predict_images, predict_split, score_best
from med_sslal.trainer.remote_calls import together
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.util import read_json, stable_hash, write_json

logger = logging.getLogger(__name__)

GATE_MARGIN = 0.01
"""A student that is so much worse on validation, or less, goes on."""


def pseudo_label(
    setup: RunSetup,
    stop: StopRequest,
    folder: CycleFolder,
    pool: Pool,
    labels: Mapping[str, Annotation],
) -> PseudoLabels:
    """The pseudo-labels of a cycle by its supervised model, for the images unlabelled now.

    Made from one pass over the pool unless they are there. `labels` are those of the labelled
    images.
    """
    if folder.pseudo_labels.exists():
        return PseudoLabels.read(folder.pseudo_labels)
    started, before = time.monotonic(), folder.supervised
    labeller, names = setup.strategy.labeller, setup.class_names
    assert labeller is not None
    seen = _on_validation(setup, stop, before)
    thresholds = labeller.thresholds(seen, setup.split_labels("val"), names)
    record = score_best(
        setup,
        stop,
        before,
        pool=pool,
        path=before.record,
        header=lambda best: header_of(setup, best, labels),
        views=(PLAIN,),
        columns=columns_of(setup, labeller),
    )
    seed = stable_hash(setup.seed, "pseudo", folder.number)
    made = labeller.make(record, pool, thresholds, labels, seed=seed)
    if labeller.ignore_unmatched:
        what = {"weights": before.load_best()["model"], "ids": tuple(labels)}
        found = together(predict_images, setup, stop, title="labelled images", **what)
        made = replace(made, regions=unmatched(found, labels, thresholds))
    for name, stats in made.stats.items():
        found_at, used = thresholds[name], stats.threshold
        capped = f", raised from {found_at:.3f} by density_cap" if used > found_at else ""
        text = "cycle %d: %d pseudo-labels of %s, from a score of %.3f on%s"
        logger.info(text, folder.number, stats.count, name, used, capped)
    if setup.strategy.ssl.oracle:
        text = "cycle %d: ssl_settings.oracle puts the truth of %d images in their place"
        logger.warning(text, folder.number, len(made.labels))
        made = made.replaced(setup.strategy.oracle.audit(made.labels))
    made.write(folder.pseudo_labels)
    folder.note_seconds("pseudo_labels", time.monotonic() - started)
    return made


def teacher_thresholds(setup: RunSetup, stop: StopRequest, folder: CycleFolder) -> dict[str, float]:
    """Scores from which on the cycle's supervised model is sure of a class, as mean teacher."""
    labeller, before = setup.strategy.labeller, folder.supervised
    assert labeller is not None
    started, measured = time.monotonic(), before.val_predictions.exists()
    seen = _on_validation(setup, stop, before)
    thresholds = labeller.thresholds(seen, setup.split_labels("val"), setup.class_names)
    if not measured:
        folder.note_seconds("pseudo_labels", time.monotonic() - started)
    told = ", ".join(f"{name} from {score:.3f} on" for name, score in thresholds.items())
    logger.info("cycle %d: the mean teacher is sure of %s", folder.number, told)
    return thresholds


def columns_of(setup: RunSetup, labeller: PseudoLabeller) -> tuple[str, ...]:
    """Those of OPTIONAL_COLUMNS that pseudo-labels need and the detector gives."""
    detector = setup.config.init_class("arch")
    given = detector.abilities(setup.config.get("arch.args"))
    asked = labeller.regress_iou is not None
    return ("refined_boxes",) if asked and "refined_boxes" in given else ()


def gate_metric(metrics: tuple[str, ...], named: str | None, class_names: tuple[str, ...]) -> str:
    """The validation value that decides, `val_` before its name.

    Raises:
        ConfigError: It is not measured.
    """
    known = [f"val_{key}" for key in metric_keys(metrics, class_names)]
    wanted = [named] if named else ["val_AP50", "val_sens_mean"]
    found = next((name for name in wanted if name in known), None)
    if found is None:
        raise ConfigError(
            f"ssl_settings.gate_metric: {' or '.join(wanted)} is not measured; metrics give "
            f"{', '.join(known)}"
        )
    return found


def decide(setup: RunSetup, stop: StopRequest, folder: CycleFolder, *, has_student: bool) -> None:
    """See to it that the model which goes on is in the cycle's folder.

    That is the student, or the supervised one where there are no pseudo-labels, or where the gate
    finds the student worse on validation. It does no harm to do it again.
    """
    if not folder.gate.exists():
        started = time.monotonic()
        write_json(folder.gate, _verdict(setup, stop, folder, has_student=has_student))
        folder.note_seconds("gate", time.monotonic() - started)
    verdict = read_json(folder.gate)
    if not verdict["accepted"]:
        folder.take_supervised()
    kept = folder.rejected if folder.rejected.exists() else folder.supervised.training
    folder.note_seconds("other_training", read_json(kept)["seconds"] if has_student else 0.0)
    if folder.supervised.record.exists():
        shutil.rmtree(folder.supervised.record)


def _verdict(
    setup: RunSetup, stop: StopRequest, folder: CycleFolder, *, has_student: bool
) -> dict[str, Any]:
    """What `gate.json` says."""
    number, ssl = folder.number, setup.strategy.ssl
    if not has_student:
        logger.info("cycle %d: no image got pseudo-labels, so there is no student", number)
        return {"accepted": False, "metric": None, "supervised": None, "student": None}
    if not ssl.gate:
        return {"accepted": True, "metric": None, "supervised": None, "student": None}
    metric = gate_metric(setup.metrics, ssl.gate_metric, setup.class_names)
    supervised, student = (
        _value(setup, _on_validation(setup, stop, part), metric)
        for part in (folder.supervised, folder)
    )
    accepted = (
        supervised is not None and student is not None and student >= supervised - GATE_MARGIN
    )
    shown = ["undefined" if each is None else f"{each:.4f}" for each in (student, supervised)]
    text = "cycle %d: pseudo-labels %s: %s %s of the student, %s without them"
    logger.info(text, number, "accepted" if accepted else "rejected", metric, *shown)
    values = {"supervised": supervised, "student": student}
    return {"accepted": accepted, "metric": metric, **values}


def _on_validation(
    setup: RunSetup, stop: StopRequest, folder: CycleFolder
) -> dict[str, Prediction]:
    """Detections of a folder's best model on the validation images, from a file once it is made."""
    names = setup.class_names
    if not folder.val_predictions.exists():
        what = {"weights": folder.load_best()["model"], "split": "val"}
        title = f"cycle {folder.number} {folder.path.name} val"
        found, _ = together(predict_split, setup, stop, title=title, **what)
        write_json(folder.val_predictions, to_coco_predictions(found, setup.images.infos, names))
    return from_coco_predictions(read_json(folder.val_predictions), names)


def _value(setup: RunSetup, found: Mapping[str, Prediction], metric: str) -> float | None:
    truth, infos = setup.split_labels("val"), setup.images.infos
    result = evaluate(setup.metrics, found, truth, infos, setup.class_names, draws=0)
    value: float | None = result["values"][metric.removeprefix("val_")]
    return value
