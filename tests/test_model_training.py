"""Losses of the detector: equal to stock torchvision per image, and what differs on purpose."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as StockFasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import AnchorGenerator

from med_sslal.base.types import Frame, ImageInfo, Target
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.targets import Sampler, draw_samples, read_targets
from med_sslal.utils.errors import DataError

ANCHORS = ((12,), (20,), (32,), (56,), (96,))
SMALL = {
    "num_classes": 3,
    "backbone_name": "resnet18",
    "anchor_sizes": ANCHORS,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_pre_nms_top_n_test": 100,
    "rpn_post_nms_top_n_test": 50,
    "box_batch_size_per_image": 32,
    "fpn_channels": 64,
    "box_head_size": 64,
}
LOSSES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")


def target_of(
    boxes: list[list[float]],
    labels: list[int] | None = None,
    ignore: list[bool] | None = None,
    regress: list[bool] | None = None,
) -> Target:
    n = len(boxes)
    return Target(
        torch.tensor(boxes, dtype=torch.float32).reshape(n, 4),
        torch.tensor([1] * n if labels is None else labels, dtype=torch.int64),
        torch.tensor([False] * n if ignore is None else ignore, dtype=torch.bool),
        torch.tensor([True] * n if regress is None else regress, dtype=torch.bool),
    )


def frames_of(*names: str, size: int = 96) -> list[Frame]:
    identity = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    return [Frame(ImageInfo(name, name, name, (size, size)), identity) for name in names]


def small_model(seed: int = 0, **args) -> FasterRCNN:
    torch.manual_seed(seed)
    return FasterRCNN(**(SMALL | args))


def images_of(n: int, side: int = 96, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values()).mean()


TARGETS = [
    target_of([[10, 12, 34, 40], [50, 20, 60, 32]], [1, 2]),
    target_of([[30, 30, 80, 90]], [2]),
    target_of([]),
]


@pytest.fixture(scope="module")
def pair() -> tuple[StockFasterRCNN, FasterRCNN]:
    """A stock detector and ours with its weights, batch norm in eval mode."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    stock = StockFasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=AnchorGenerator(ANCHORS, ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        box_batch_size_per_image=32,
        min_size=96,
        max_size=96,
        # Else it draws a size from the global generator, even from one.
        _skip_resize=True,
    )
    ours = FasterRCNN(**(SMALL | {"fpn_channels": 256, "box_head_size": 1024}))
    ours.load_state_dict(stock.state_dict())
    for model in (stock, ours):
        model.train()
        model.backbone.eval()
    return stock, ours


def stock_losses(stock: StockFasterRCNN, images: Tensor, targets: list[Target]) -> dict:
    plain = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    return stock(list(images), plain)


@pytest.mark.parametrize("target", TARGETS, ids=["two boxes", "one box", "no box"])
def test_one_images_losses_equal_stock_for_the_same_generator(pair, target):
    stock, ours = pair
    image = images_of(1)
    torch.manual_seed(7)
    expected = stock_losses(stock, image, [target])
    after = torch.get_rng_state()
    torch.manual_seed(7)
    found = ours(image, [target]).losses
    assert set(found) == set(LOSSES) == set(expected)
    for name in LOSSES:
        assert found[name].shape == (1,)
        torch.testing.assert_close(found[name][0], expected[name], atol=1e-6, rtol=1e-5)
    assert torch.equal(torch.get_rng_state(), after), "not the same random draws"


def test_mean_over_the_batch_equals_stock_where_samples_are_full(pair):
    stock, ours = pair
    images = images_of(3)
    torch.manual_seed(7)
    expected = stock_losses(stock, images, TARGETS)
    torch.manual_seed(7)
    found = ours(images, TARGETS).losses
    for name in LOSSES:
        torch.testing.assert_close(found[name].mean(), expected[name], atol=1e-6, rtol=1e-5)


def test_gradients_equal_stock(pair):
    stock, ours = pair
    image, target = images_of(1), TARGETS[0]
    gradients = []
    for model in (stock, ours):
        torch.manual_seed(7)
        model.zero_grad()
        if model is stock:
            sum(stock_losses(stock, image, [target]).values()).backward()
        else:
            total(ours(image, [target]).losses).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        model.zero_grad()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3)


def test_a_few_steps_learn_and_every_part_gets_a_gradient():
    model = small_model(norm="group").train()
    images, targets = images_of(2), TARGETS[:2]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    history = []
    for _ in range(6):
        loss = total(model(images, targets).losses)
        optimizer.zero_grad()
        loss.backward()
        without = [name for name, p in model.named_parameters() if p.grad is None]
        assert not without
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0]


def test_training_without_targets_is_refused():
    with pytest.raises(DataError, match="target"):
        small_model().train()(images_of(1))


def test_training_gives_no_detections():
    assert small_model().train()(images_of(1), TARGETS[:1]).detections == []


def test_a_batch_of_empty_images_trains():
    model = small_model(norm="group").train()
    losses = model(images_of(2), [target_of([]), target_of([])]).losses
    total(losses).backward()
    assert losses["loss_objectness"].min() > 0
    assert torch.equal(losses["loss_box_reg"], torch.zeros(2))


def test_bf16_training_has_float32_losses_and_gradients():
    model = small_model(norm="group").train()
    model.autocast_dtype = torch.bfloat16
    losses = model(images_of(2), TARGETS[:2]).losses
    assert all(value.dtype == torch.float32 for value in losses.values())
    total(losses).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "part", ["backbone.body.conv1.weight", "rpn.head.bbox_pred.bias", "roi_heads.box_head.fc6.bias"]
)
def test_diverged_weights_give_a_loss_that_says_so(part, value):
    model = small_model(norm="group").train()
    with torch.no_grad():
        model.get_parameter(part).fill_(value)
    assert not total(model(images_of(1), TARGETS[:1]).losses).isfinite()


# Validation losses.


def test_val_loss_repeats_and_touches_nothing():
    model = small_model().eval()
    images, frames = images_of(3), frames_of("a", "b", "c")
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    random_state = torch.get_rng_state()
    with torch.no_grad():
        outputs = [model(images, TARGETS, frames) for _ in range(5)]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    assert len(outputs[0].detections) == 3
    for output in outputs[1:]:
        for name in LOSSES:
            assert torch.equal(output.losses[name], outputs[0].losses[name])


def test_val_loss_depends_on_the_image_id_and_not_on_the_global_generator():
    model = small_model().eval()
    images = images_of(1)
    with torch.no_grad():
        torch.manual_seed(1)
        first = model(images, TARGETS[:1], frames_of("a")).losses
        torch.manual_seed(2)
        again = model(images, TARGETS[:1], frames_of("a")).losses
        other = model(images, TARGETS[:1], frames_of("b")).losses
    assert torch.equal(first["loss_objectness"], again["loss_objectness"])
    assert not torch.equal(first["loss_objectness"], other["loss_objectness"])


def test_seeded_images_draw_the_same_in_any_batch_and_global_state():
    model, images = small_model(norm="group").train(), images_of(3)
    frames = [replace(frame, seed=i) for i, frame in enumerate(frames_of("a", "b", "c"))]
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    together = model(images, TARGETS, frames).losses
    assert torch.equal(torch.get_rng_state(), random_state)
    torch.manual_seed(2)
    alone = [model(images[i : i + 1], TARGETS[i : i + 1], frames[i : i + 1]) for i in range(3)]
    for name in LOSSES:
        found = torch.cat([output.losses[name] for output in alone])
        torch.testing.assert_close(together[name], found, atol=1e-4, rtol=1e-3)
    other = model(images[:1], TARGETS[:1], [replace(frames[0], seed=7)]).losses
    assert not torch.equal(other["loss_objectness"], alone[0].losses["loss_objectness"])


def test_val_loss_is_independent_of_batch_mates():
    model = small_model().eval()
    images, frames = images_of(3), frames_of("a", "b", "c")
    with torch.no_grad():
        together = model(images, TARGETS, frames).losses
        for i in range(3):
            part = slice(i, i + 1)
            alone = model(images[part], TARGETS[part], frames[part]).losses
            for name in LOSSES:
                torch.testing.assert_close(together[name][part], alone[name], atol=1e-4, rtol=1e-3)


def test_detections_are_the_same_with_and_without_targets():
    model = small_model().eval()
    images, frames = images_of(2), frames_of("a", "b")
    with torch.no_grad():
        plain = model(images, None, frames).detections
        with_losses = model(images, TARGETS[:2], frames).detections
    for one, other in zip(plain, with_losses, strict=True):
        assert len(one.boxes) > 0
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=1e-4)


# Ignore regions and boxes without regression.

# A grid of anchors of one size is all the samplers need.
CANDIDATES = torch.tensor(
    [[x, y, x + 20.0, y + 20.0] for y in range(0, 80, 10) for x in range(0, 80, 10)]
)
REGION = [20.0, 20.0, 60.0, 60.0]


def sampled(target: Target, model: FasterRCNN, stage: str, candidates: Tensor = CANDIDATES):
    """Every sample of one image: boxes of the positives and of the negatives."""
    matcher = (model.rpn if stage == "rpn" else model.roi_heads).proposal_matcher
    truths = read_targets([target], 3, None)
    samples = draw_samples(matcher, Sampler(1000, 0.5), truths, [candidates], [None])
    is_positive = samples.labels > 0
    boxes = candidates[samples.rows]
    return boxes[is_positive], boxes[~is_positive], samples


def inside_fraction(boxes: Tensor, region: list[float]) -> Tensor:
    region = torch.tensor(region)
    low = torch.maximum(boxes[:, :2], region[:2])
    high = torch.minimum(boxes[:, 2:], region[2:])
    return (high - low).clamp(min=0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_ignore_regions_neither_attract_nor_repel(stage):
    model = small_model()
    positives, negatives, _ = sampled(target_of([REGION], ignore=[True]), model, stage)
    assert len(positives) == 0
    fractions = inside_fraction(negatives, REGION)
    assert fractions.max() < 0.5
    expected = (inside_fraction(CANDIDATES, REGION) < 0.5).sum()
    assert len(negatives) == expected < len(CANDIDATES)


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_a_real_box_on_an_ignore_region_still_attracts(stage):
    model = small_model()
    real = [30.0, 30.0, 50.0, 50.0]
    positives, negatives, _ = sampled(
        target_of([REGION, real], [1, 2], ignore=[True, False]), model, stage
    )
    assert positives.tolist() == [real]
    assert inside_fraction(negatives, REGION).max() < 0.5


@pytest.mark.parametrize("stage", ["rpn", "roi"])
def test_a_region_smaller_than_the_candidate_ignores_by_iou(stage):
    model = small_model()
    candidates = torch.tensor([[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 60.0, 60.0]])
    target = target_of([[0.0, 0.0, 20.0, 19.0]], ignore=[True])
    _, negatives, _ = sampled(target, model, stage, candidates)
    assert negatives.tolist() == [[40.0, 40.0, 60.0, 60.0]]


@pytest.mark.parametrize("training", [True, False], ids=["training", "validation"])
def test_an_image_that_is_one_ignore_region_costs_nothing(training):
    model = small_model(norm="group").train(training)
    target = target_of([[-500.0, -500.0, 600.0, 600.0]], ignore=[True])
    losses = model(images_of(1), [target]).losses
    assert all(torch.equal(value, torch.zeros(1)) for value in losses.values())
    total(losses).backward()
    assert all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_ignore_boxes_are_no_proposals_and_no_classes():
    model = small_model().eval()
    ignored = target_of([[10, 12, 34, 40]], [99], ignore=[True])
    losses = model(images_of(1), [ignored]).losses
    assert losses["loss_box_reg"] == 0 and losses["loss_rpn_box_reg"] == 0


def test_boxes_without_regression_teach_classes_only():
    model = small_model().eval()
    image, frames = images_of(1), frames_of("a")
    boxes = [[10, 12, 34, 40], [50, 20, 60, 32]]
    taught = model(image, [target_of(boxes)], frames).losses
    class_only = model(image, [target_of(boxes, regress=[False, False])], frames).losses
    half = model(image, [target_of(boxes, regress=[True, False])], frames).losses
    for name in ("loss_classifier", "loss_objectness"):
        assert torch.equal(taught[name], class_only[name])
    for name in ("loss_box_reg", "loss_rpn_box_reg"):
        assert class_only[name] == 0
        assert 0 < half[name] < taught[name]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        pytest.param(target_of([[0, 0, 9, 9]], [0]), "1 to 2 .*found 0", id="background"),
        pytest.param(target_of([[0, 0, 9, 9]], [-1]), "found -1", id="negative"),
        pytest.param(target_of([[0, 0, 9, 9]], [3]), "found 3", id="beyond the classes"),
        pytest.param(target_of([[5, 0, 5, 9]]), "positive area", id="no area"),
        pytest.param(target_of([[5, 5, 3, 9]]), "positive area", id="swapped corners"),
        pytest.param(target_of([[0, 0, float("nan"), 9]]), "finite", id="nan"),
        pytest.param(target_of([[0, 0, float("inf"), 9]]), "finite", id="inf"),
    ],
)
def test_bad_targets_name_the_image(target, message):
    model = small_model().train()
    with pytest.raises(DataError, match=message) as error:
        model(images_of(2), [TARGETS[0], target], frames_of("good", "bad"))
    assert "image bad" in str(error.value)
