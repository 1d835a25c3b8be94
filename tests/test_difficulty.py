"""The quality of the positive RoIs of a training pass, and its way into the record's header."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from slope import scripted, trainer_of
from tiny import make_voc, quick_config, run_train, write_config
from torch import Tensor

from med_sslal.al.record import PoolRecord
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.types import Target
from med_sslal.model.detector import Seen
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.parallel import gather_outputs, scatter_parts

SIDE, N_CLASSES = 96, 4


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    """A detector whose samplers take everything, so that nothing is left to chance."""
    torch.manual_seed(3)
    detector = FasterRCNN(
        num_classes=N_CLASSES,
        backbone_name="resnet18",
        norm="group",
        anchor_sizes=((12,), (20,), (32,), (56,), (96,)),
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=1000,
        fpn_channels=64,
        box_head_size=64,
    )
    torch.nn.init.normal_(detector.roi_heads.box_predictor.bbox_pred.weight, std=0.3)
    torch.nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.5)
    detector.roi_heads.fg_bg_sampler.batch_size_per_image = 100_000
    return detector.train()


def target_of(boxes: list[list[float]], labels: list[int]) -> Target:
    flags = torch.zeros(len(labels), dtype=torch.bool)
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.tensor(labels).long(), flags, ~flags)


TARGETS = [
    target_of([[10, 12, 44, 50], [50, 20, 90, 62]], [1, 3]),
    target_of([], []),
    target_of([[30, 30, 80, 90], [2, 5, 40, 29]], [3, 3]),
]


def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(len(TARGETS), 3, SIDE, SIDE, generator=generator)


def iou(first: list[float], second: list[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def decoded(delta: list[float], box: list[float]) -> list[float]:
    """A box moved by regression values with torchvision's weights 10, 10, 5, 5."""
    width, height = box[2] - box[0], box[3] - box[1]
    x = box[0] + width / 2 + delta[0] / 10 * width
    y = box[1] + height / 2 + delta[1] / 10 * height
    half_width = math.exp(min(delta[2] / 5, math.log(1000 / 16))) * width / 2
    half_height = math.exp(min(delta[3] / 5, math.log(1000 / 16))) * height / 2
    return [x - half_width, y - half_height, x + half_width, y + half_height]


@torch.no_grad()
def literal_quality(model: FasterRCNN) -> list[list[list[float]]]:
    """[image][class] of [sum, number], one RoI after the other, as the formula is written."""
    batch = model.transform(images(), None)
    features, c5 = model.backbone(batch.tensors)
    proposals, *_ = model.rpn(Seen(batch, features, c5, None, None, None), [])
    heads, result = model.roi_heads, []
    for i, target in enumerate(TARGETS):
        sums = [[0.0, 0.0] for _ in range(N_CLASSES - 1)]
        boxes = torch.cat([proposals[i], target.boxes])
        level = {name: maps[i : i + 1] for name, maps in features.items()}
        pooled = heads.box_roi_pool(level, [boxes], [(SIDE, SIDE)])
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        for row, box in enumerate(boxes.tolist()):
            overlaps = [iou(box, truth) for truth in target.boxes.tolist()]
            if not overlaps or max(overlaps) < 0.5:
                continue
            best = overlaps.index(max(overlaps))
            label = int(target.labels[best])
            p = logits[row].softmax(0)[label].item()
            delta = deltas[row, 4 * label : 4 * label + 4].tolist()
            overlap = iou(decoded(delta, box), target.boxes[best].tolist())
            sums[label - 1][0] += p**0.6 * overlap**0.4
            sums[label - 1][1] += 1
        result.append(sums)
    return result


def test_class_quality_is_the_formula_over_the_positive_rois(model):
    literal = torch.tensor(literal_quality(model))
    output = model(images(), TARGETS)
    quality = output.class_quality
    assert quality.shape == (len(TARGETS), N_CLASSES - 1, 2)
    assert quality.dtype == torch.float32 and not quality.requires_grad
    assert quality[..., 1].tolist() == literal[..., 1].tolist()
    # More than the true boxes themselves, which are always among the RoIs.
    assert quality[..., 1].sum() > 8 and quality[1].sum() == 0 and quality[:, 1].sum() == 0
    torch.testing.assert_close(quality, literal, rtol=1e-4, atol=1e-4)


def test_parts_of_several_devices_give_the_quality_of_one(model):
    parts = scatter_parts(images(), TARGETS, None, 2)
    gathered = gather_outputs([model(*part) for part in parts], torch.device("cpu"))
    whole = model(images(), TARGETS).class_quality
    torch.testing.assert_close(gathered.class_quality, whole, rtol=1e-4, atol=1e-4)


def test_low_precision_gives_float32_qualities(model):
    full = model(images(), TARGETS).class_quality
    model.autocast_dtype = torch.bfloat16
    try:
        low = model(images(), TARGETS).class_quality
    finally:
        model.autocast_dtype = None
    assert low.dtype == torch.float32
    assert low.isfinite().all() and not torch.equal(low, full)


def test_no_quality_outside_of_training(model):
    model.eval()
    try:
        with torch.no_grad():
            assert model(images(), TARGETS).class_quality is None
    finally:
        model.train()


@pytest.mark.slow
def test_the_records_header_has_the_difficulty_of_each_class(tmp_path: Path) -> None:
    config = quick_config(make_voc(tmp_path / "voc", classes=2), tmp_path / "runs")
    config["arch"]["args"]["num_classes"] = 3
    config["al_settings"]["num_cycles"] = 1
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x") == 0
    cycle = tmp_path / "runs" / "tiny" / "x" / "cycle_00"
    difficulty = PoolRecord.open(cycle / "record").header.class_difficulty
    assert set(difficulty) == {"class0", "class1"}
    assert all(0 < value < 1 for value in difficulty.values())
    assert difficulty == load_checkpoint(cycle / "model_best.pth")["class_difficulty"]


DIM_AND_BRIGHT = [0.1, 0.2, 0.3, 0.4, 0.4, 0.3, 0.2, 0.9]


def difficulty_of(path: Path) -> dict[str, float]:
    return load_checkpoint(path)["class_difficulty"]


def by_hand(shown: Sequence[Sequence[float]], hidden: float = -1.0) -> dict[str, float]:
    """The difficulty after these steps, images of the brightness `hidden` left out."""
    values = {"never": 1.0}
    for name, least in (("thing", 0.0), ("bright", 0.5)):
        top = bottom = 0.0
        for age, step in enumerate(reversed(shown)):
            met = [value for value in step if value > least and abs(value - hidden) > 1e-3]
            if met:
                top += 0.99**age * sum(met) / len(met)
                bottom += 0.99**age
        values[name] = 1 - top / bottom
    return values


def test_class_difficulty_is_a_running_mean_over_the_steps(tmp_path: Path) -> None:
    trainer, model = trainer_of(
        tmp_path,
        brightness=DIM_AND_BRIGHT,
        epochs=3,
        monitor="min val_loss",
        evaluate=scripted([2, 1, 3]),
    )
    trainer.train()
    assert len(model.shown) == 12
    last, best = (tmp_path / name for name in ("checkpoint_last.pth", "model_best.pth"))
    assert difficulty_of(last) == pytest.approx(by_hand(model.shown), abs=1e-6)
    assert difficulty_of(best) == pytest.approx(by_hand(model.shown[:8]), abs=1e-6)
    assert difficulty_of(best)["thing"] != difficulty_of(last)["thing"]


def test_pseudo_labels_do_not_count_as_difficulty(tmp_path: Path) -> None:
    trainer, model = trainer_of(tmp_path, brightness=[*DIM_AND_BRIGHT, 0.7, 0.7], n_pseudo=2)
    trainer.train()
    assert any(min(abs(value - 0.7) for value in step) < 1e-3 for step in model.shown)
    wanted = by_hand(model.shown, hidden=0.7)
    assert difficulty_of(tmp_path / "checkpoint_last.pth") == pytest.approx(wanted, abs=1e-6)


def test_a_detector_without_class_quality_has_no_difficulty(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, graded=False)
    trainer.train()
    assert difficulty_of(tmp_path / "model_best.pth") == {}
