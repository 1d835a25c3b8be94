"""Run and study folders written by the program's own writers, without a training."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from records import detections, write_record
from tiny import make_voc, tiny_config

from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.finds import finds, record_mistakes, write_finds
from med_sslal.al.pool import Pool
from med_sslal.al.selection_io import write_detections, write_selection
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.types import Annotation, Prediction, Selected, Selection
from med_sslal.cli.build import build_dataset
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.eval.coco_utils import to_coco_predictions
from med_sslal.eval.metric import evaluate
from med_sslal.ssl.pseudo_labels import ClassStats, PseudoLabels
from med_sslal.ssl.quality import hidden_truth_quality
from med_sslal.study.finish import Family
from med_sslal.study.label_efficiency import compare_arms
from med_sslal.study.study_result import Curve
from med_sslal.study.verdict import verdict
from med_sslal.trainer.run_folder import CycleFolder, RunFolder
from med_sslal.utils.util import write_json

INIT, BUDGET = 4, 3


def make_run(
    root: Path,
    *,
    queries: int = 2,
    planned: int | None = None,
    pseudo: bool = True,
    seen: bool = True,
    classes: int = 1,
    data: Path | None = None,
    config_changes: dict[str, Any] | None = None,
    device: str = "cpu",
    reason: str = "localization_tightness 0.5000, place 1 of 8",
) -> Path:
    """Write a run of `queries` + 1 measured cycles.

    Args:
        root: Where run and data go.
        queries: Cycles that ended with a query.
        planned: `al_settings.num_cycles`, by default as many.
        pseudo: Whether each cycle with a query had pseudo-labels, whose student was rejected.
        seen: Whether the model detects anything.
        classes: Classes of the data.
        data: Made before, in Pascal VOC form.
        config_changes: Top-level keys of the config.
        device: What environment.json says.
        reason: Why an image was taken.
    """
    data = data or make_voc(root / "voc", classes=classes)
    settings = tiny_config(data, root / "runs") | (config_changes or {})
    settings["arch"]["args"]["num_classes"] = classes + 1
    settings["al_settings"]["num_cycles"] = queries if planned is None else planned
    settings["ssl_settings"]["include_pseudolabels"] = pseudo
    config = ConfigParser(settings, registries())
    dataset = build_dataset(config)
    folder = root / "runs" / "tiny" / "one"
    folder.mkdir(parents=True)
    write_json(
        folder / "split.json", {name: list(ids) for name, ids in dataset.images.splits.items()}
    )
    write_json(folder / "config.json", config.resolved)
    write_json(folder / "environment.json", {"python": "3.11", "packages": {"torch": "2.8.0"},
                                             "device": device, "gpu": None})  # fmt: skip
    ids = dataset.images.splits["train"]
    pool = Pool(ids[:INIT], ids[INIT:])
    rows = []
    for number in range(queries + 1):
        cycle = folder / f"cycle_{number:02d}"
        cycle.mkdir()
        write_json(cycle / "pool.json", pool.state_dict())
        if number < queries and pseudo:
            _pseudo_label(cycle, dataset, pool)
        rows.append(_measure(cycle, dataset, pool, number, seen=seen))
        if number < queries:
            pool = _query(cycle, dataset, pool, number, reason=reason, seen=seen)
    RunFolder(folder).write_summary(
        rows, finished=len(rows) == settings["al_settings"]["num_cycles"] + 1
    )
    return folder


def _measure(
    cycle: Path, dataset: BaseDataset, pool: Pool, number: int, *, seen: bool
) -> dict[str, Any]:
    """Write training and evaluation of a cycle; returns its row."""
    labels = dataset.labels.of(dataset.images.splits["test"])
    found = {name: _noticed(label, number, seen=seen) for name, label in labels.items()}
    names = dataset.labels.class_names
    test = evaluate(
        ["sensitivity_k_fps", "coco_ap"], found, labels, dataset.images.infos, names, draws=20
    )  # fmt: skip
    test["values"]["loss"] = 0.5
    write_json(cycle / "training.json", {"steps": 5, "best_epoch": 1, "seconds": 60.0})
    CycleFolder(cycle).note_seconds("evaluation", 30.0)
    write_json(cycle / "predictions.json", to_coco_predictions(found, dataset.images.infos, names))
    low, high = test["intervals"]["sens_mean"] or (None, None)
    bought = [dataset.labels.annotations[name] for name in pool.labelled]
    row = {
        "cycle": number,
        "labelled_images": len(bought),
        "labelled_boxes": sum(label.n_objects for label in bought),
        "pseudo_images": 2 * number,
        **{f"test_{key}": value for key, value in test["values"].items()},
        "test_sens_mean_low": low,
        "test_sens_mean_high": high,
        "minutes": 1.5,
    }
    own, graded = cycle / "pseudo_labels.json", {}
    if own.exists():
        pseudo = PseudoLabels.read(own).labels
        quality = hidden_truth_quality(pseudo, dataset.labels.annotations, names)
        graded = {name: each._asdict() for name, each in quality.items()}
    write_json(cycle / "metrics.json", {"row": row, "test": test, "pseudo_quality": graded})
    return row


def _noticed(label: Annotation, number: int, *, seen: bool) -> Prediction:
    """The truth with a rising score, and a false box in the corner."""
    if not seen:
        return Prediction.empty()
    corner = np.array([[0, 0, 5, 5]], dtype=np.float32)
    scores = np.full(len(label.labels), 0.5 + 0.1 * number, dtype=np.float32)
    return Prediction(
        np.concatenate([label.boxes, corner]),
        np.append(label.labels, 1),
        np.append(scores, np.float32(0.2)),
    )


def _query(
    cycle: Path, dataset: BaseDataset, pool: Pool, number: int, *, reason: str, seen: bool
) -> Pool:
    """Write a selection and what a report shows of it; returns the pool after it."""
    taken = pool.unlabelled[:BUDGET]
    images = {
        name: detections(
            [0.9, 0.4, 0.3, 0.2, 0.15, 0.1, 0.06] if seen else [],
            n_classes=len(dataset.labels.class_names),
        )
        for name in pool.unlabelled
    }
    names = dataset.labels.class_names
    record = write_record(cycle / "record", images, n_classes=len(names))
    values = {name: 0.5 - 0.01 * i for i, name in enumerate(pool.unlabelled)}
    items = [
        Selected(name, rank, name, {"localization_tightness": values[name]}, reason)
        for rank, name in enumerate(taken, start=1)
    ]
    selection = Selection(
        tuple(items),
        {"localization_tightness": values},
        ("localization_tightness", "top_k"),
        3,
        0.25,
    )
    _note_finds(CycleFolder(cycle), dataset, seen=seen)
    path = CycleFolder(cycle).detections
    write_detections(path, selection, record, dataset.images.infos, number)
    # The helper's classes have names of their own.
    content = json.loads(path.read_text())
    content["categories"] = to_coco_predictions({}, {}, names)["categories"]
    write_json(path, content)
    CycleFolder(cycle).note_seconds("selection", 0.5)
    write_selection(cycle / "selection.json", selection, number, record.header)
    return pool.label(taken)


def _note_finds(cycle: CycleFolder, dataset: BaseDataset, *, seen: bool) -> None:
    """Write what a criterion finds on validation, where every other image has a false box."""
    ids, names = dataset.images.splits["val"], dataset.labels.class_names
    images = {
        name: detections([0.9, 0.5][: place % 2 + 1] if seen else [], n_classes=len(names))
        for place, name in enumerate(ids)
    }
    record = write_record(cycle.val_record, images, n_classes=len(names))
    rating = ActiveLearningHelper(1, 1, ["entropy"], seed=3).rate(record, cycle.number)
    truth = record_mistakes(record, dataset.labels.of(ids), dataset.images.infos)
    write_finds(cycle.finds, finds(rating, truth), cycle.number, record.header)


def _pseudo_label(cycle: Path, dataset: BaseDataset, pool: Pool) -> None:
    """Write the truth of one image and one false box on another as pseudo-labels."""
    right, wrong = pool.unlabelled[:2]
    label = dataset.labels.annotations[right]
    false = Annotation(
        np.array([[0, 0, 3, 3]], dtype=np.float32), np.array([1]), np.array([False])
    )  # fmt: skip
    stats = {
        name: ClassStats(2 if place == 0 else 1, 0.9, 0.8)
        for place, name in enumerate(dataset.labels.class_names)
    }
    examples = {right: [0.95] * label.n_objects, wrong: [0.81]}
    labels = {right: label, wrong: false}
    PseudoLabels(labels, stats, examples=examples).write(cycle / "pseudo_labels.json")
    verdict = {"accepted": False, "metric": "val_AP50", "supervised": 0.6, "student": 0.5}
    write_json(cycle / "gate.json", verdict)


def make_result(gain: float = 0.1, seeds: int = 3) -> dict[str, dict[int, list[float]]]:
    """Scores of random, an arm that is better by `gain`, and full supervision."""
    base = {s: [0.2 + 0.01 * s, 0.3, 0.4 + 0.01 * s, 0.5] for s in range(seeds)}
    better = {s: [v[0], *(value + gain for value in v[1:])] for s, v in base.items()}
    return {"random": base, "entropy": better, "full": {s: [0.6] for s in base}}


def make_study(
    root: Path, scores: dict[str, dict[int, Sequence[float]]], *, compared: bool = True
) -> Path:
    """Write a study folder: arm to seed to the score after each cycle; `full` is the ceiling."""
    folder = root / "study"
    x = [10, 20, 30, 40]
    for arm, by_seed in scores.items():
        for seed, values in by_seed.items():
            run = folder / arm / f"s{seed}"
            run.mkdir(parents=True)
            rows = [
                {
                    "cycle": i,
                    "labelled_images": x[i],
                    "labelled_boxes": 2 * x[i],
                    "test_sens_mean": value,
                }
                for i, value in enumerate(values)
            ]
            RunFolder(run).write_summary(rows, finished=True)
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    study = {
        "format_version": 3,
        "name": "tiny_study",
        "metrics": ["test_sens_mean"],
        "baselines": ["random"],
        "results": None,
        "full": "full" if "full" in scores else None,
        "seeds": seeds,
        "n_runs": sum(map(len, scores.values())),
        "arms": {arm: {"al_settings.args.al_criterion": [arm]} for arm in scores},
        "set": {"trainer.steps_per_cycle": 7},
        "config": {"dataset": {"type": "DeepLesionPhantom"}},
    }
    write_json(folder / "study.json", study)
    if compared:
        full = {s: v[-1] for s, v in scores["full"].items()} if "full" in scores else None
        results = {
            unit: compare_arms(
                {
                    arm: {
                        s: Curve(tuple(float(factor * n) for n in x[: len(v)]), tuple(v))
                        for s, v in by_seed.items()
                    }
                    for arm, by_seed in scores.items()
                    if arm != "full"
                },
                full,
                draws=200,
                unit=unit,
            )
            for unit, factor in (("images", 1), ("boxes", 2))
        }
        sentences = tuple(verdict(results["images"]))
        family = Family("test_sens_mean", "random", results, sentences).to_json()
        content = {"format_version": 3, "families": [family], "notes": []}
        write_json(folder / "results.json", content)
    return folder
