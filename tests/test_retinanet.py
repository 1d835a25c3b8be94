"""RetinaNet: equal to stock torchvision, and what differs on purpose."""

import json
from pathlib import Path

import pytest
import torch
from same_run import assert_same_run
from test_model import frame_of, pictures, unresized
from test_model_training import frames_of, images_of, target_of
from test_resume import stop_at
from tiny import make_voc, quick_config, run_test, run_train, write_config
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as StockRetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import AnchorGenerator

from med_sslal.__main__ import main
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.types import Extras, Target
from med_sslal.model.detectors import RetinaNet
from med_sslal.utils.errors import UserError

ANCHORS = ((12,), (20,), (32,), (56,), (96,))
SMALL = {
    "num_classes": 3,
    "backbone_name": "resnet18",
    "fpn_channels": 64,
    "anchor_sizes": ANCHORS,
}
LOSSES = ("loss_classifier", "loss_box_reg")
TARGETS = [
    target_of([[10, 12, 34, 40], [50, 20, 60, 32]], [1, 2]),
    target_of([[30, 30, 80, 90]], [2]),
    target_of([]),
]


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that give many classes, scores and shapes, and no background.

    torchvision hands detections of the background's column out; ours, whose labels start at 1, do
    not. One pass scales the outputs.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = (
        (model.head.classification_head.cls_logits, 2.0),
        (
            model.head.regression_head.bbox_reg,
            0.5,
        ),
    )
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        for layer, std in layers:
            seen = []
            handle = layer.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
            model.eval()(torch.rand(1, 3, 96, 96, generator=generator))
            handle.remove()
            layer.weight.mul_(std / torch.cat([x.flatten() for x in seen]).std())
            layer.bias.fill_(0.0)
        layers[0][0].bias[::3] = -100.0
        layers[0][0].bias[1::3] = layers[0][0].bias[2::3] = -2.0
    return model.eval()


def stock_model(**args) -> StockRetinaNet:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    anchors = AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * 5)
    return unresized(StockRetinaNet(backbone, 3, anchor_generator=anchors, **args))


def small_model(seed: int = 0, **args) -> RetinaNet:
    torch.manual_seed(seed)
    return spread(RetinaNet(**(SMALL | args)), seed)


@pytest.mark.parametrize(
    ("candidates", "limit"), [(1000, 10_000), (60, 40)], ids=["all", "the best"]
)
def test_bit_equal_to_stock_on_mixed_sizes(candidates, limit):
    torch.manual_seed(3)
    stock = spread(
        stock_model(score_thresh=0.2, detections_per_img=10_000, topk_candidates=candidates), 3
    )
    ours = RetinaNet(
        **(SMALL | {"fpn_channels": 256}),
        box_score_thresh=0.2,
        box_detections_per_img=limit,
        topk_candidates=candidates,
    ).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    images = pictures((90, 120), (130, 70), (100, 100))
    with torch.no_grad():
        expected, found = stock(images), ours(images).detections
    labels = torch.cat([item["labels"] for item in expected])
    assert len(labels) > 100 and (limit == 40 or set(labels.tolist()) == {1, 2})
    for stock_item, item in zip(expected, found, strict=True):
        # torchvision hands boxes without area out too.
        sides = stock_item["boxes"][:, 2:] - stock_item["boxes"][:, :2]
        kept = (sides >= 1e-2).all(1).nonzero()[:limit, 0]
        assert torch.equal(item.boxes, stock_item["boxes"][kept])
        assert torch.equal(item.labels, stock_item["labels"][kept])
        assert torch.equal(item.scores, stock_item["scores"][kept])


@pytest.mark.parametrize("target", TARGETS, ids=["two boxes", "one box", "no box"])
def test_one_images_losses_equal_stock(target):
    torch.manual_seed(1)
    stock = stock_model()
    ours = RetinaNet(**(SMALL | {"fpn_channels": 256}))
    ours.load_state_dict(stock.state_dict(), strict=True)
    stock.train().backbone.eval()
    ours.train().backbone.eval()
    image = images_of(1)
    expected = stock(list(image), [{"boxes": target.boxes, "labels": target.labels}])
    output = ours(image, [target])
    pairs = zip(LOSSES, ("classification", "bbox_regression"), strict=True)
    for name, stock_name in pairs:
        torch.testing.assert_close(output.losses[name][0], expected[stock_name])
    sum(expected.values()).backward()
    sum(output.losses.values()).mean().backward()
    gradients = {name: p.grad for name, p in stock.named_parameters()}
    for name, parameter in ours.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)


def losses_of(model: RetinaNet, images: Tensor, targets: list[Target]) -> dict[str, Tensor]:
    with torch.no_grad():
        return model(images, targets).losses


def test_losses_come_by_image():
    model, images = small_model(), images_of(3)
    together = losses_of(model, images, TARGETS)
    for number, target in enumerate(TARGETS):
        alone = losses_of(model, images[number : number + 1], [target])
        for name in LOSSES:
            torch.testing.assert_close(together[name][number], alone[name][0])
    assert together["loss_box_reg"][2] == 0


def test_ignore_regions_neither_attract_nor_repel():
    model, image = small_model(), images_of(1)
    box, region = [10.0, 12.0, 34.0, 40.0], [50.0, 50.0, 90.0, 90.0]
    plain = target_of([box])
    ignoring = target_of([box, region], ignore=[False, True])
    first, second = (losses_of(model, image, [one]) for one in (plain, ignoring))
    assert torch.equal(first["loss_box_reg"], second["loss_box_reg"])
    assert second["loss_classifier"] < first["loss_classifier"]
    # What the region covers may say what it likes.
    everything = target_of([box, [0.0, 0.0, 96.0, 96.0]], ignore=[False, True])
    only = losses_of(model, image, [everything])["loss_classifier"]
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias[1::3] += 3
    louder = losses_of(model, image, [plain])["loss_classifier"]
    assert louder > 2 * first["loss_classifier"]
    assert losses_of(model, image, [everything])["loss_classifier"] < 0.5 * louder
    assert only < first["loss_classifier"]


def test_boxes_that_teach_no_regression_teach_their_class():
    model, image = small_model(), images_of(1)
    taught, untaught = (target_of([[10, 12, 34, 40]], regress=[flag]) for flag in (True, False))
    first, second = (losses_of(model, image, [one]) for one in (taught, untaught))
    assert torch.equal(first["loss_classifier"], second["loss_classifier"])
    assert first["loss_box_reg"] > 0 and second["loss_box_reg"] == 0


def test_val_losses_touch_nothing():
    model, images = small_model(), images_of(3)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    random_state = torch.get_rng_state()
    outputs = [model(images, TARGETS, frames_of("a", "b", "c")) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    for name in LOSSES:
        assert torch.equal(outputs[0].losses[name], outputs[1].losses[name])
    assert len(outputs[0].detections) == 3 and outputs[0].class_quality is None


def test_class_probabilities_are_shares_of_the_best_score():
    model = small_model(num_classes=3, box_score_thresh=0.05)
    with torch.no_grad():
        [item] = model(images_of(1)).detections
    assert len(item.boxes) > 10
    torch.testing.assert_close(item.class_probs.sum(1), torch.ones(len(item.boxes)))
    background, foreground = item.class_probs[:, 0], item.class_probs[:, 1:]
    # One of the two scores is known, and with it the other.
    best = 1 - background
    rows = torch.arange(len(item.labels))
    own, other = foreground[rows, item.labels - 1], foreground[rows, 2 - item.labels]
    scores = item.scores * other / own
    torch.testing.assert_close(torch.maximum(item.scores, scores), best, atol=1e-4, rtol=1e-3)


def test_what_it_cannot_give_is_zero():
    model = small_model()
    model.extras = Extras(columns=("roi_features", "refined_boxes"))
    frame = frame_of("a", (64, 64), [[-1.0, 0.0, 64.0], [0.0, 1.0, 0.0]])
    with torch.no_grad():
        [item] = model(images_of(1, 64), frames=[frame]).detections
    assert item.proposals.shape == item.boxes.shape and not item.proposals.any()
    assert item.top_proposals.shape == (0, 4) and item.top_objectness.shape == (0,)
    assert item.roi_features is None and item.refined_boxes is None
    model.extras = Extras(head_passes=(1,))
    with pytest.raises(UserError, match="RoI heads"):
        model(images_of(1, 64))


def test_a_mirrored_frame_maps_boxes_back():
    model, image = small_model(), images_of(1, 64)
    frame = frame_of("a", (64, 64), [[-1.0, 0.0, 64.0], [0.0, 1.0, 0.0]])
    with torch.no_grad():
        [plain], [mapped] = model(image).detections, model(image, frames=[frame]).detections
    assert len(plain.boxes) > 5
    mirrored = torch.stack([64 - plain.boxes[:, 2], 64 - plain.boxes[:, 0]], 1)
    torch.testing.assert_close(mapped.boxes[:, 0::2], mirrored)


def test_outputs_are_float32_under_bf16():
    model = small_model()
    model.autocast_dtype = torch.bfloat16
    with torch.no_grad():
        output = model(images_of(1), TARGETS[:1])
    [item] = output.detections
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}
    assert item.boxes.dtype == item.class_probs.dtype == torch.float32
    assert len(item.scores.unique()) > 0.9 * len(item.scores)


def test_class_quality_counts_the_positives():
    model = small_model().train()
    quality = model(images_of(3), TARGETS).class_quality
    assert quality.shape == (3, 2, 2) and not quality.requires_grad
    assert (quality[..., 0] <= quality[..., 1]).all()
    assert quality[0, :, 1].min() >= 1 and quality[1, 0, 1] == 0 and quality[2].sum() == 0


def test_diverged_weights_are_an_error():
    model = small_model()
    with torch.no_grad():
        model.head.regression_head.bbox_reg.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="not finite"):
        model(images_of(1))


def retina_config(data: Path, save_dir: Path) -> dict:
    config = quick_config(data, save_dir)
    args = config["arch"]["args"]
    kept = ("backbone_name", "pretrained", "num_classes", "norm", "anchor_sizes", "fpn_channels")
    own = {name: args[name] for name in kept}
    config["arch"] = {"type": "tests.small_detectors.SmallRetinaNet", "args": own}
    config["al_settings"] |= {"num_cycles": 1}
    config["al_settings"]["args"]["al_criterion"] = ["entropy", "k_means_diversity"]
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("data") / "voc")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = retina_config(data, tmp_path / "runs")
    config["ssl_settings"]["include_pseudolabels"] = False
    path = write_config(tmp_path / "c.json", config)
    assert run_train("-c", path, "--run-id", "whole") == 0
    with monkeypatch.context() as patch:
        # Within the second epoch of cycle 1.
        stop_at(patch, 23, None)
        assert run_train("-c", path, "--run-id", "stopped") == 143
    runs = tmp_path / "runs" / "tiny"
    assert load_checkpoint(runs / "stopped" / "cycle_01" / "checkpoint_last.pth")["batch"] == 1
    assert run_train("--resume", runs / "stopped") == 0
    assert_same_run(runs / "whole", runs / "stopped")


@pytest.mark.slow
def test_a_run_scores_selects_and_takes_pseudo_labels(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = retina_config(data, tmp_path / "runs")
    # Fresh weights give scores about the prior, 0.01, and a record begins at 0.05.
    config["optimizer"] = {"type": "AdamW", "args": {"lr": 2e-3}}
    config["trainer"] |= {"steps_per_cycle": 20, "val_steps": 20}
    assert run_train("-c", write_config(tmp_path / "c.json", config), "--run-id", "x") == 0
    run = tmp_path / "runs" / "tiny" / "x"
    assert len(json.loads((run / "cycle_00" / "selection.json").read_text())["image_ids"]) == 5
    assert run_test("-r", run) == 0
    # Its graph would hang on the image that it is traced with.
    assert main(["export", "-r", str(run), "--onnx", "--out", str(tmp_path / "out")]) == 2
    assert "leave --onnx out" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ("localization_tightness", "the proposal that each box was regressed from"),
        ("unexplained_objectness", "the best proposals with their objectness"),
        ("ensemble_disagreement", "passes of the RoI heads with dropout"),
        (["entropy", "class_conditional_similarity"], "RoI features of every detection"),
        ("box_self_consistency", "the box head's own box for every final box"),
    ],
)
def test_what_needs_a_second_stage_is_refused(criterion, words, data, tmp_path, capsys):
    config = retina_config(data, tmp_path / "runs")
    names = criterion if isinstance(criterion, list) else [criterion]
    config["al_settings"]["args"]["al_criterion"] = names
    assert run_train("-c", write_config(tmp_path / "c.json", config)) == 2
    error = capsys.readouterr().err
    kind = config["arch"]["type"]
    assert f"{names[-1]} needs {words}, which the detector {kind} does not give" in error
    assert not (tmp_path / "runs").exists()
