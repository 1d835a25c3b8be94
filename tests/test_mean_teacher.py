"""A mean teacher: what it tells its student, when it is let go, and runs of it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from same_run import assert_same_run
from small_detectors import SmallRCNN
from tiny import make_voc, run_train, small_config, write_config

from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.optimisation import Optimisation
from med_sslal.base.settings import TrainerSettings
from med_sslal.base.training_step import StepInput, StepOutcome
from med_sslal.base.types import Batch, Extras, Frame, Hole, ImageInfo, Target
from med_sslal.base.views import into_view
from med_sslal.model.inference import handing_out
from med_sslal.ssl.mean_teacher import BoxCounts, Teacher
from med_sslal.trainer.teacher_step import TeacherStep
from med_sslal.utils.boxes import paired_iou
from med_sslal.utils.distributed import ALONE
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import read_json

SIDE = 64


def detector(seed: int) -> SmallRCNN:
    torch.manual_seed(seed)
    return SmallRCNN(
        num_classes=3,
        backbone_name="small",
        norm="group",
        fpn_channels=16,
        box_head_size=16,
        anchor_sizes=((12,), (16,), (24,), (32,), (48,)),
        box_batch_size_per_image=32,
        rpn_post_nms_top_n_test=30,
        rpn_post_nms_top_n_train=60,
    )


def view(images: torch.Tensor, matrices: list[list[list[float]]], holes: tuple[Hole, ...]) -> Batch:
    """A batch of one view, with holes in its first image."""
    frames = tuple(
        Frame(ImageInfo(str(i), str(i), "", (SIDE, SIDE)), torch.tensor(matrix), seed=i)
        for i, matrix in enumerate(matrices)
    )
    first = Frame(frames[0].info, frames[0].to_original, seed=0, holes=holes)
    return Batch(images, None, (first, *frames[1:]), torch.zeros(len(images), dtype=torch.bool))


SAME = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
MIRRORED = [[-1.0, 0.0, SIDE], [0.0, 1.0, 0.0]]
SMALLER = [[1.25, 0.0, -8.0], [0.0, 1.25, -8.0]]


@pytest.fixture
def views() -> dict[str, Batch]:
    """Two images: the strong views are mirrored with a hole, and smaller."""
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return {
        "weak": view(pixels, [SAME, SAME], ()),
        "strong": view(pixels.flip(3), [MIRRORED, SMALLER], ((0, 0, SIDE, 30),)),
    }


def test_boxes_of_the_weak_view_come_into_the_strong_one(views: dict[str, Batch]) -> None:
    model = detector(0)
    found = model.eval()(views["weak"].images, None, views["weak"].frames).detections
    scores = torch.cat([each.scores for each in found]).detach()
    middle, floor = float(scores.median()), float(scores.quantile(0.25))
    teacher = Teacher(model.train(), {"a": middle, "b": math.inf}, floor)
    lesson = teacher.look(**views)
    assert not model.training, "the teacher computes as in a validation"
    number = 0
    for image, (each, target) in enumerate(zip(found, lesson.targets, strict=True)):
        kept = 0
        for box, label, score in zip(each.boxes, each.labels, each.scores, strict=True):
            x1, y1, x2, y2 = box.tolist()
            if image == 0:
                x1, x2 = SIDE - x2, SIDE - x1
                hidden = max(0.0, min(y2, 30) - y1) / (y2 - y1)
            else:
                x1, y1, x2, y2 = ((value + 8) / 1.25 for value in (x1, y1, x2, y2))
                hidden = 0.0
            if score < floor or hidden > 0.7 or min(x2 - x1, y2 - y1) < 2:
                continue
            torch.testing.assert_close(
                target.boxes[kept], torch.tensor([x1, y1, x2, y2]), atol=1e-3, rtol=1e-4
            )
            assert target.labels[kept] == label
            assert bool(target.ignore[kept]) == (label == 2 or score < middle)
            kept += 1
        assert len(target.boxes) == kept and not target.regress.any()
        number += kept
    assert 0 < number < len(scores), "some are left out"
    sure = [(target.labels[~target.ignore] == 1).sum() for target in lesson.targets]
    assert lesson.count(2) == [sum(sure), 0]
    assert lesson.sure.tolist() == [float(n > 0) for n in sure]


def test_sure_boxes_that_hold_still_teach_regression(views: dict[str, Batch]) -> None:
    model, wanted = detector(0).eval(), []
    with torch.no_grad(), handing_out(model, Extras(("refined_boxes",))):
        found = model(views["weak"].images, None, views["weak"].frames).detections
    ious = [paired_iou(each.boxes.numpy(), each.refined_boxes.numpy()) for each in found]
    scores = torch.cat([each.scores for each in found])
    least, sure = float(np.median(np.concatenate(ious))), float(scores.median())
    lesson = Teacher(model, {"a": sure, "b": sure}, 0.0, least).look(**views)
    for each, iou, frame in zip(found, ious, views["strong"].frames, strict=True):
        _, shown = into_view(each.boxes, frame, (SIDE, SIDE))
        wanted.append((torch.from_numpy(iou >= least) & (each.scores >= sure))[shown].tolist())
    assert [target.regress.tolist() for target in lesson.targets] == wanted
    assert 0 < sum(map(sum, wanted)) < sum(int((~t.ignore).sum()) for t in lesson.targets)


def test_soft_targets_are_the_teachers_for_the_same_proposals(views: dict[str, Batch]) -> None:
    """Against the teacher's head asked for one proposal at a time, and the formula."""
    model, student = detector(0), detector(1).train()
    lesson = Teacher(model, {"a": 0.4, "b": 0.4}, 0.3).look(**views)
    strong = views["strong"]
    flags = torch.ones(1, dtype=torch.bool)
    targets = [Target(torch.tensor([[20.0, 34, 40, 60]]), flags.long(), ~flags, ~flags)] * 2
    output = student(strong.images, targets, strong.frames)
    loss = lesson.soft_loss(output.rois, 0)
    wanted, seen = [], model.see(views["weak"].images)
    for image, rois in enumerate(output.rois):
        total, used = 0.0, 0
        for (x1, y1, x2, y2), logits in zip(rois.boxes.tolist(), rois.logits, strict=True):
            hidden = 0.0
            if image == 0:
                hidden = max(0.0, min(y2, 30) - y1) / (y2 - y1)
                x1, x2 = SIDE - x2, SIDE - x1
            else:
                x1, y1, x2, y2 = (min(max(1.25 * value - 8, 0), SIDE) for value in (x1, y1, x2, y2))
            # In the padding around the smaller picture there is nothing to be learnt.
            if hidden > 0.7 or min(x2 - x1, y2 - y1) < 2:
                continue
            boxes = [torch.zeros(0, 4), torch.zeros(0, 4)]
            boxes[image] = torch.tensor([[x1, y1, x2, y2]])
            with torch.no_grad():
                probs = model.roi_heads.class_probs(seen, boxes)[image][0]
            total = total - (probs * logits.log_softmax(0)).sum()
            used += 1
        assert used > 0, "proposals of both kinds"
        wanted.append(total / len(rois.boxes))
    torch.testing.assert_close(loss, torch.stack([torch.as_tensor(w) for w in wanted]))
    # A part of the batch gives the part of the losses.
    torch.testing.assert_close(lesson.soft_loss(output.rois[1:], 1), loss[1:])
    # What is not sure is left out by the proposals, and not by the box head.
    unsure = replace(
        targets[0], boxes=torch.tensor([[-SIDE, -SIDE, 2.0 * SIDE, 2 * SIDE]]), ignore=flags
    )
    none, soft = (
        student(strong.images, [replace(unsure, soft=each)] * 2, strong.frames)
        for each in (False, True)
    )
    assert not any(len(rois.boxes) for rois in none.rois)
    assert all(len(rois.boxes) for rois in soft.rois)
    assert not soft.losses["loss_objectness"].any()
    loss.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    moved = student.roi_heads.box_predictor
    assert moved.cls_score.weight.grad.abs().sum() > 0 and moved.bbox_pred.weight.grad is None


def half_sure(views: dict[str, Batch]) -> Teacher:
    """A teacher that is sure of a box in one image of the two."""
    scores = detector(0).eval()(views["weak"].images, None, views["weak"].frames).detections
    for score in torch.cat([each.scores for each in scores]).sort(descending=True)[0].tolist():
        teacher = Teacher(detector(0), {"a": score, "b": score}, 0.3)
        if teacher.look(**views).sure.sum() == 1:
            return teacher
    raise AssertionError("no such threshold")


def taught(
    views: dict[str, Batch], number: int, *, accumulate: int = 1, counts: bool = True
) -> tuple[TeacherStep, StepOutcome]:
    """A step, with two labelled images and two others, of a training of 20 with a tail of 4."""
    settings = TrainerSettings(
        ema=True, pseudo_weight=0.5, tail=0.2, teacher_fixed=0.5, accumulate=accumulate
    )
    model = detector(1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = TeacherStep(
        model=model,
        optimisation=Optimisation(model, optimizer, None, scaler, settings, half_life=12.0),
        settings=settings,
        world=ALONE,
        teacher=half_sure(views),
        audit=lambda ids: {},
    )
    strong, no = views["strong"], torch.zeros(1, dtype=torch.bool)
    target = Target(torch.tensor([[8.0, 10, 30, 28]]), torch.ones(1).long(), no, ~no)
    batch = replace(strong, images=strong.images.flip(2), targets=(target, target))
    return step, step(StepInput(batch, counts, 2, 0, views, 2, number, 20, True))


def test_a_step_adds_what_the_teacher_says_but_in_the_tail(views: dict[str, Batch]) -> None:
    _, outcome = taught(views, 2)
    assert outcome.pseudo.tolist() == [False, False, True, True] and outcome.share == 1
    losses = outcome.losses
    for name in ("loss_box_reg", "loss_rpn_box_reg"):
        assert losses[name][:2].gt(0).any() and not losses[name][2:].any()
    # Half of the ramp of four steps.
    total = torch.stack(list(losses.values())).sum(0)
    torch.testing.assert_close(outcome.loss, total[:2].mean() + 0.5 * 0.5 * total[2:].mean())
    sure = half_sure(views).look(**views).sure
    assert (losses["loss_objectness"][2:] > 0).float().tolist() == sure.tolist()
    # In parts, the images are taught the same; a process without a labelled image has the others.
    for accumulate in (2, 4):
        _, parts = taught(views, 2, accumulate=accumulate)
        for name, value in losses.items():
            torch.testing.assert_close(parts.losses[name], value)
        torch.testing.assert_close(parts.loss, outcome.loss)
    _, alone = taught(views, 2, counts=False)
    assert alone.pseudo.tolist() == [True, True] and alone.share == 0.5
    torch.testing.assert_close(alone.losses["loss_classifier"], losses["loss_classifier"][2:])
    step, tail = taught(views, 16)
    assert tail.pseudo.tolist() == [False, False] and step.end_epoch() == {}
    for name, value in losses.items():
        torch.testing.assert_close(tail.losses[name], value[:2])


def test_the_teacher_stays_for_half_of_the_steps_and_a_half_life(views: dict[str, Batch]) -> None:
    for number, follows in ((11, False), (12, True)):
        step, _ = taught(views, number)
        assert step.teacher.follows == follows
        assert (step.teacher.model is step.optimisation.kept) == follows
        values = step.end_epoch()
        assert values["teacher_boxes"] == values["teacher_boxes/a"] + values["teacher_boxes/b"]
        again, _ = taught(views, 2)
        again.load_state_dict(step.state_dict())
        assert again.teacher.follows == follows and again.end_epoch() == values
        assert (again.teacher.model is again.optimisation.kept) == follows


def epoch(counts: BoxCounts, boxes: list[int], *, images: int = 40, followed: int = 40) -> Any:
    counts.begin_epoch()
    sums = torch.tensor([images, followed, *boxes], dtype=torch.float64)
    counts.add(sums, torch.tensor([[3.0, 1, 4, 2, 1.5]], dtype=torch.float64))
    return counts.values()


@pytest.mark.parametrize(
    ("boxes", "images", "followed", "stops"),
    [
        ([[40], [120]], 40, 40, True),
        ([[40], [80]], 40, 40, False),
        ([[2], [5]], 40, 40, False),
        ([[0], [12]], 40, 40, True),
        ([[40], [200]], 40, 20, False),
        ([[40], [79], [150]], 40, 40, False),
    ],
    ids=["three times", "twice", "chance", "from none", "another teacher", "slowly"],
)
def test_boxes_that_double_stop_the_training(
    boxes: list[list[int]], images: int, followed: int, stops: bool
) -> None:
    counts = BoxCounts(["a"])
    for each in boxes[:-1]:
        epoch(counts, each, images=images, followed=followed)
    if not stops:
        values = epoch(counts, boxes[-1], images=images)
        assert values["teacher_boxes"] == values["teacher_boxes/a"] == boxes[-1][0] / 40
        quality = [values[f"teacher_{key}/a"] for key in ("precision", "recall", "mean_iou")]
        assert quality == [0.75, 0.75, 0.75]
        return
    with pytest.raises(UserError, match=r"gives \d+\.\d\d boxes an image after \d\.\d\d in the ep"):
        epoch(counts, boxes[-1], images=images)


def test_counts_go_on_where_they_were_and_an_epoch_of_the_tail_has_none() -> None:
    counts, other = BoxCounts(["a"]), BoxCounts(["a"])
    epoch(counts, [40])
    counts.begin_epoch()
    other.load_state_dict(counts.state_dict())
    other.add(torch.tensor([40.0, 40, 120], dtype=torch.float64), torch.zeros(1, 5))
    with pytest.raises(UserError):
        other.values()
    assert counts.values() == {}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cycles of 12 steps: six epochs of two, the last three steps on labels alone."""
    root = tmp_path_factory.mktemp("teacher")
    settings = small_config(make_voc(root / "voc"), root / "runs")
    settings["ssl_settings"] |= {"mode": "mean_teacher", "tail": 0.25}
    settings["ssl_settings"]["args"] = {"threshold": 0.3}
    settings["optimizer"]["args"]["lr"] = 5e-3
    settings["trainer"] |= {"epochs": 6, "ema": True, "checkpoint_seconds": 1e-6}
    settings["trainer"] |= {"save_period": 100, "val_period": 3}
    return write_config(root / "config.json", settings)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The run of it, unbroken."""
    assert run_train("-c", config, "--run-id", "whole") == 0
    return config.parent / "runs" / "tiny" / "whole"


@pytest.mark.slow
def test_a_run_with_a_mean_teacher(whole: Path) -> None:
    for number in (0, 1):
        cycle = whole / f"cycle_{number:02d}"
        history = read_json(cycle / "training.json")["history"]
        if (cycle / "training_rejected.json").exists():
            history = read_json(cycle / "training_rejected.json")["history"]
        taught = ["pseudo/loss_classifier" in values for values in history]
        assert len(taught) >= 3 and taught == sorted(taught, reverse=True)
        assert all(values["teacher_boxes"] >= 0 for values in history if "teacher_boxes" in values)
        assert "teacher_boxes/class0" in history[0] and not taught[-1]
        graded = [values for values in history if "teacher_precision/class0" in values]
        assert graded and all(0 <= values["teacher_recall/class0"] <= 1 for values in graded)
        assert read_json(cycle / "gate.json")["metric"] == "val_AP50"
        assert not (cycle / "pseudo_labels.json").exists()
        last = load_checkpoint(cycle / "checkpoint_last.pth")
        state = last["state"]["training_step"]["teacher"]
        assert state == {"model": None, "follows": True}
    assert (whole / "cycle_00" / "selection.json").exists()
    log = (whole / "train.log").read_text()
    assert "with a mean teacher" in log and "the student's average teaches" in log
    page = (whole / "report.html").read_text()
    assert "A mean teacher labels the images of each step" in page and "Went on" in page


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 8])
def test_a_killed_student_goes_on_to_the_bit(whole: Path, config: Path, at: int) -> None:
    """Killed in mid-epoch, while its teacher stays as it is and once it follows the student."""
    run = whole.with_name(f"killed{at}")
    step = TeacherStep.__call__

    def dying(self: TeacherStep, given: StepInput) -> StepOutcome:
        if given.number == at:
            raise MemoryError("the power is gone")
        return step(self, given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TeacherStep, "__call__", dying)
        with pytest.raises(MemoryError):
            run_train("-c", config, "--run-id", run.name)
    state = load_checkpoint(run / "cycle_00" / "checkpoint_last.pth")["state"]["training_step"]
    assert state["teacher"]["follows"] == (state["teacher"]["model"] is None) == (at == 8)
    assert run_train("--resume", run) == 0
    assert_same_run(whole, run)


def test_a_teacher_that_stays_needs_no_average(config: Path, tmp_path: Path) -> None:
    line = ["trainer.ema=false", "ssl_settings.teacher_fixed=1.0", f"trainer.save_dir={tmp_path}"]
    assert run_train("-c", config, "--dry-run", *(w for one in line for w in ("--set", one))) == 0


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["trainer.ema=false"], "set trainer.ema to true"),
        (["al_settings.args.init_num=all", "al_settings.num_cycles=0"], "leaves 0: set it lower"),
        (["trainer.steps_per_cycle=2", "ssl_settings.tail=0.5"], "leaves the student nothing"),
        (["ssl_settings.teacher_fixed=0.9"], "would teach from step 11 on"),
        (["trainer.epochs=1", "ssl_settings.tail=0"], "half-life of 2 steps"),
        (["ssl_settings.oracle=true"], 'ssl_settings.oracle goes with mode "offline"'),
        (
            ['arch={"type": "RetinaNet", "args": {"num_classes": 2}}'],
            "which the detector Retina",
        ),
        (["ssl_settings.mode=online"], "ssl_settings.mode: found"),
        (["trainer.type=my.Step"], "trainer.type: a training step of your own and ssl_settings"),
    ],
    ids=[
        "no average",
        "empty pool",
        "tail",
        "late",
        "short",
        "oracle",
        "one stage",
        "no mode",
        "own step",
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    config: Path, tmp_path: Path, line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*line, f"trainer.save_dir={tmp_path / 'runs'}"]
    assert run_train("-c", config, *(word for one in line for word in ("--set", one))) == 2
    error = capsys.readouterr().err
    assert words in error
    assert not (tmp_path / "runs").exists()
