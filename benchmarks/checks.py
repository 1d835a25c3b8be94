"""What a switch, a column or a student costs; what low precision and the batch size change."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from benchmarks.sides import (
    Repeated,
    Workload,
    own_evaluation,
    own_scoring,
    own_training,
    predictions,
    score,
)
from benchmarks.timing import Comparison, compare
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Prediction
from med_sslal.eval.metric import evaluate
from med_sslal.model.detectors import FasterRCNN
from med_sslal.ssl.mean_teacher import Teacher

BATCH_SIZES = (1, 3, 8)
LEARNING_RATE = 1e-3


def switch_comparisons(work: Workload) -> list[Comparison]:
    """Ours against ours with one key changed: training and evaluation."""
    found = []
    for switch in work.options.switches:
        other = work.switched(switch)
        names = ("ours", f"{'.'.join(switch.path)}={switch.value}")
        for title, make in (("training", own_training), ("evaluation", own_evaluation)):
            first = work.model()
            sides = make(work, first), make(other, other.model(first))
            title = f"{title} with {names[1]}"
            found.append(compare(title, *sides, work.options.pairs, work.device, names=names))
    return found


def refined_comparison(work: Workload) -> Comparison:
    """The scoring pass of a trained model with `refined_boxes` in the record against without."""
    rest, model = trained(work)
    rest = replace(rest, data=Repeated(rest.data, work.options.batch_size * work.options.steps))
    sides = own_scoring(rest, model), own_scoring(rest, model, ("refined_boxes",))
    section = score(rest, model, rest.eval_loader(labels=False)).section(PLAIN)
    name = f"scoring pass, {len(section.scores) / len(section):.1f} boxes of an image"
    names = ("plain", "refined")
    return compare(name, *sides, work.options.pairs, work.device, names=names)


def student_comparisons(work: Workload) -> list[Comparison]:
    """A student's step against a supervised one of as many images, loading in it.

    Half of the images are pseudo-labelled ones, or such that a mean teacher looks at; both start
    from a trained model.
    """
    options = work.options
    rest, model = trained(replace(work, options=replace(options, in_memory=False)))
    half = options.batch_size * options.steps
    labelled, both = (replace(rest, data=Repeated(rest.data, n)) for n in (half, 2 * half))
    names = rest.data.labels.class_names
    first = cast(FasterRCNN, work.model(model))
    teacher = Teacher(first, dict.fromkeys(names, 0.5), floor=0.2, regress_iou=0.85)
    students = {
        "offline": own_training(both, work.model(model), n_pseudo=half),
        "mean teacher": own_training(labelled, work.model(model), teacher=teacher),
    }
    supervised = own_training(both, work.model(model), batch_size=2 * options.batch_size)
    return [
        compare(
            f"step of a student, {mode}",
            supervised,
            student,
            options.pairs,
            work.device,
            names=("supervised", "student"),
        )
        for mode, student in students.items()
    ]


def trained(work: Workload) -> tuple[Workload, BaseModel]:
    """A detector of ours after a short training, and the images of the other patients."""
    splits = work.dataset.images.splits
    sides = [splits["train"], (*splits["val"], *splits["test"])]
    # No more images than the steps see.
    counts = min(len(sides[0]), work.options.train_steps * work.options.batch_size), len(sides[1])
    learn, rest = (
        replace(work, data=Repeated(work.dataset, n, ids))
        for n, ids in zip(counts, sides, strict=True)
    )
    model = work.model()
    side = own_training(learn, model)
    assert side.optimizer is not None and side.tap is not None
    for group in side.optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    for _ in range(-(-work.options.train_steps // len(side.tap))):
        side.run()
    return rest, model


def precision_check(work: Workload, model: BaseModel) -> dict[str, Any]:
    """AP50 and boxes of one model in fp32 and in low precision.

    Returns:
        By precision: `AP50`, the boxes' `dtype`, and the share of their coordinates that bf16
        could hold (`bf16_share`): near 1 would mean that boxes were computed in bf16.
    """
    labels = work.data.labels.annotations
    found: dict[str, Any] = {}
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        tap = work.eval_loader(labels=True)
        setup = replace(work.setup, compute=replace(work.setup.compute, dtype=dtype))
        found_boxes = predictions(setup, setup.compute.parallel(model), tap)
        result = evaluate(
            ["coco_ap"],
            found_boxes,
            labels,
            work.data.images.infos,
            work.data.labels.class_names,
            draws=0,
        )
        found[name] = {"AP50": result["values"]["AP50"], **_boxes(found_boxes)}
    return found


def _boxes(found: Mapping[str, Prediction]) -> dict[str, Any]:
    boxes = np.concatenate([prediction.boxes for prediction in found.values()])
    same = torch.from_numpy(boxes).bfloat16().float().numpy() == boxes
    share = float(same.mean()) if boxes.size else None
    return {"dtype": str(boxes.dtype), "n_boxes": len(boxes), "bf16_share": share}


def drift_check(work: Workload, model: BaseModel) -> dict[str, Any]:
    """How far scores and selection move with the batch size, in fp32 and in bf16.

    Returns:
        By precision: the largest difference of an image's n-th best score between batch sizes,
        and the least overlap of the selected images.
    """
    found: dict[str, Any] = {}
    for name, dtype in (("fp32", None), ("bf16", torch.bfloat16)):
        setup = replace(work.setup, compute=replace(work.setup.compute, dtype=dtype))
        records = []
        for size in BATCH_SIZES:
            tap = work.eval_loader(labels=False, batch_size=size)
            records.append(score(replace(work, setup=setup), setup.compute.parallel(model), tap))
        chosen = [_chosen(work, record) for record in records]
        tables = [_best_scores(record) for record in records]
        found[name] = {
            "batch_sizes": list(BATCH_SIZES),
            "largest_score_difference": max(
                float(np.abs(table - tables[0]).max(initial=0.0)) for table in tables
            ),
            "least_overlap_of_selection": min(
                len(ids & chosen[0]) / len(chosen[0]) for ids in chosen
            ),
        }
    return found


def _chosen(work: Workload, record: PoolRecord) -> set[str]:
    """A quarter of the images by localization_tightness."""
    budget = max(1, len(work.data.images.infos) // 4)
    helper = ActiveLearningHelper(
        init_num=1, budget_num=budget, al_criterion=["localization_tightness"], seed=0
    )
    return set(
        helper.query(record, Pool((), work.data.images.splits["train"]), budget, 0).image_ids
    )


def _best_scores(record: PoolRecord, n: int = 20) -> np.ndarray:
    """The n best scores of every image, 0 where it has fewer: [images, n]."""
    section = record.section(PLAIN)
    table = np.zeros((len(section.image_ids), n))
    for row, (start, stop) in enumerate(zip(section.offsets, section.offsets[1:], strict=False)):
        best = np.sort(section.scores[start:stop])[::-1][:n]
        table[row, : len(best)] = best
    return table
