"""The detector in eval mode: equal to stock torchvision, and what it adds."""

from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
import torch
from config_samples import full
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as StockFasterRCNN
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import AnchorGenerator

from med_sslal.base.types import (
    Batch,
    Detections,
    Extras,
    Frame,
    ImageInfo,
    Target,
    UnlabelledSample,
)
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.transforms import EvalTransform
from med_sslal.model.backbone import BACKBONES, BackboneSpec
from med_sslal.model.detectors import FasterRCNN, RetinaNet
from med_sslal.model.inference import stream
from med_sslal.model.model import MODELS
from med_sslal.model.transform import DetectionTransform, valid_mean
from med_sslal.utils.errors import ConfigError, DataError, UserError

SMALL = {
    "num_classes": 3,
    "backbone_name": "resnet18",
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 40,
    "fpn_channels": 64,
    "box_head_size": 64,
}


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights that give many classes, scores and shapes (fresh heads give none).

    One pass scales the weights of each output layer to a standard deviation of its outputs.
    """
    generator = torch.Generator().manual_seed(seed)

    def scale_to(std: float):
        def hook(layer, inputs, output):
            mean = output.mean(0) if output.dim() == 2 else output.new_zeros(())
            factor = std / (output - mean).std()
            layer.weight.mul_(factor)
            layer.bias.copy_(-mean * factor)
            return (output - mean) * factor

        return hook

    handles = [
        layer.register_forward_hook(scale_to(std))
        for layer, std in (
            (model.rpn.head.cls_logits, 2.0),
            (model.rpn.head.bbox_pred, 0.3),
            (model.roi_heads.box_predictor.cls_score, 2.0),
            (model.roi_heads.box_predictor.bbox_pred, 1.0),
        )
    ]
    was_training = model.training
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        model.eval()(torch.rand(1, 3, 96, 96, generator=generator))
    for handle in handles:
        handle.remove()
    return model.train(was_training)


def small_model(seed: int = 0, **args) -> FasterRCNN:
    torch.manual_seed(seed)
    return spread(FasterRCNN(**(SMALL | args)), seed).eval()


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def frame_of(name: str, size: tuple[int, int], affine: list[list[float]]) -> Frame:
    return Frame(ImageInfo(name, name, f"{name}.png", size), torch.tensor(affine))


def unresized(stock: nn.Module) -> nn.Module:
    """A stock detector that takes images as they are: ours are of the run's shape already."""
    stock.transform.resize = lambda image, target=None: (image, target)
    return stock


def stock_resnet18(num_classes: int) -> StockFasterRCNN:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5)
    return StockFasterRCNN(
        backbone,
        num_classes,
        rpn_anchor_generator=anchors,
        box_score_thresh=0.01,
        box_detections_per_img=300,
    )


def stock_resnet50(num_classes: int) -> StockFasterRCNN:
    return fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)


def stock_mobilenet(num_classes: int) -> StockFasterRCNN:
    return fasterrcnn_mobilenet_v3_large_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=num_classes,
        rpn_score_thresh=0.0,
    )


STOCK_ANCHORS = ((32,), (64,), (128,), (256,), (512,))
RESNET18_ARGS = {
    "backbone_name": "resnet18",
    "box_detections_per_img": 300,
}
MOBILENET_ARGS = {
    # Stock's detector does not take the eps of the ImageNet weights.
    "norm_eps": 1e-5,
    "backbone_name": "mobilenet_v3_large",
    "returned_layers": (4, 5),
    "anchor_sizes": ((32, 64, 128, 256, 512),) * 3,
    "box_score_thresh": 0.05,
}


@pytest.mark.parametrize(
    ("make_stock", "num_classes", "args"),
    [
        pytest.param(stock_resnet18, 4, RESNET18_ARGS, id="resnet18, three classes"),
        pytest.param(stock_resnet18, 2, RESNET18_ARGS, id="resnet18, one class"),
        pytest.param(
            stock_resnet50,
            6,
            {"anchor_sizes": STOCK_ANCHORS, "box_score_thresh": 0.05},
            id="resnet50, five classes",
        ),
        pytest.param(stock_mobilenet, 4, MOBILENET_ARGS, id="mobilenet, stock's stages"),
    ],
)
def test_bit_equal_to_stock_on_mixed_sizes(make_stock, num_classes, args):
    torch.manual_seed(3)
    stock = spread(unresized(make_stock(num_classes)), 3).eval()
    ours = FasterRCNN(num_classes=num_classes, **args).eval()
    ours.load_state_dict(stock.state_dict(), strict=True)
    images = pictures((90, 120), (130, 70), (100, 100))
    with torch.no_grad():
        expected = stock(images)
        found = ours(images).detections
    assert sum(len(item["boxes"]) for item in expected) > 30
    labels = torch.cat([item["labels"] for item in expected])
    scores = torch.cat([item["scores"] for item in expected])
    assert len(labels.unique()) > 1 or num_classes == 2
    assert scores.max() - scores.min() > 0.1
    for stock_item, item in zip(expected, found, strict=True):
        assert torch.equal(item.boxes, stock_item["boxes"])
        assert torch.equal(item.labels, stock_item["labels"])
        assert torch.equal(item.scores, stock_item["scores"])


def test_same_size_batch_equals_stock_without_resizing():
    torch.manual_seed(4)
    stock = unresized(stock_resnet18(3))
    spread(stock, 4).eval()
    ours = FasterRCNN(num_classes=3, backbone_name="resnet18", box_detections_per_img=300).eval()
    ours.load_state_dict(stock.state_dict())
    images = pictures((72, 100), (72, 100))
    with torch.no_grad():
        expected = stock(images)
        found = ours(torch.stack(images)).detections
    for stock_item, item in zip(expected, found, strict=True):
        assert len(item.boxes) > 5
        assert torch.equal(item.boxes, stock_item["boxes"])
        assert torch.equal(item.scores, stock_item["scores"])


@pytest.mark.parametrize("detector", [FasterRCNN, RetinaNet])
@pytest.mark.parametrize("fpn", [True, False], ids=["fpn", "one level"])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_builds_and_detects(name, fpn, detector):
    args = SMALL if detector is FasterRCNN else {"num_classes": 3, "fpn_channels": 32}
    model = detector(**(args | {"backbone_name": name, "fpn": fpn, "norm": "group"})).eval()
    with torch.no_grad():
        [item] = model(torch.rand(1, 3, 64, 64)).detections
    sizes = {"mobilenet_v2": 320, "mobilenet_v3_large": 960, "resnet18": 512, "resnet34": 512}
    assert item.embedding.shape == (sizes.get(name, 2048),)
    assert item.top_proposals.shape[1] == 4
    assert model.backbone.strides == ((4, 8, 16, 32) if fpn else (32,))


@pytest.mark.parametrize("fpn", [True, False], ids=["fpn", "one level"])
def test_the_width_of_the_pyramid_is_that_of_all_that_reads_it(fpn):
    model = small_model(fpn=fpn, fpn_channels=24)
    with torch.no_grad():
        levels, c5 = model.backbone(torch.rand(1, 3, 64, 64))
        [item] = model(torch.rand(1, 3, 64, 64)).detections
    assert {level.shape[1] for level in levels.values()} == {24} and c5.shape[1] == 512
    assert model.rpn.head.cls_logits.in_channels == 24
    assert model.roi_heads.box_head.fc6.in_features == 24 * 7 * 7
    assert len(item.boxes) > 0


def three_stages(norm_layer) -> nn.Sequential:
    """A network that the registry does not know: strides 8, 16 and 32."""
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), norm_layer(b), nn.ReLU())
        for a, b, stride in ((3, 8, 8), (8, 16, 2), (16, 32, 2))
    ]
    return nn.Sequential(OrderedDict(zip("abc", layers, strict=True)))


class OwnBackbone(FasterRCNN):
    backbones: ClassVar = {
        **BACKBONES,
        "own": BackboneSpec(three_stages, (("a",), ("b",), ("c",)), (1, 2)),
    }


def test_a_subclass_brings_its_own_backbone():
    args = {"num_classes": 2, "anchor_sizes": ((16,), (32,), (64,))}
    model = OwnBackbone(backbone_name="own", **args).eval()
    with torch.no_grad():
        [item] = model(torch.rand(1, 3, 64, 64)).detections
    assert item.embedding.shape == (32,)
    assert model.backbone.strides == (16, 32)
    [(name, sentence)] = OwnBackbone.check_args({"backbone_name": "owm", "num_classes": 2})
    assert name == "backbone_name" and "Did you mean 'own'" in sentence


def rows_agree(model: FasterRCNN, image: Tensor, item: Detections) -> None:
    """Every row of the detections must be the network's own answer for its proposal."""
    batch = model.transform(image[None])
    features, _ = model.backbone(batch.tensors)
    pooled = model.roi_heads.box_roi_pool(features, [item.proposals], batch.image_sizes)
    roi_features = model.roi_heads.box_head(pooled)
    logits, deltas = model.roi_heads.box_predictor(roi_features)
    boxes = model.roi_heads.box_coder.decode(deltas, [item.proposals])
    rows = torch.arange(len(item.labels))
    boxes = boxes[rows, item.labels].clamp(0, image.shape[-1])
    torch.testing.assert_close(item.class_probs, logits.softmax(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(item.boxes, boxes, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(item.roi_features, roi_features, atol=1e-5, rtol=1e-4)
    assert torch.equal(item.scores, item.class_probs[rows, item.labels])


def test_rows_survive_together_and_describe_their_proposal():
    model = small_model()
    model.extras = Extras(columns=("roi_features",))
    images = torch.stack(pictures((96, 96), (96, 96)))
    with torch.no_grad():
        for image, item in zip(images, model(images).detections, strict=True):
            assert len(item.boxes) > 5
            rows_agree(model, image, item)


def test_best_proposals_come_with_falling_objectness():
    model = small_model(top_proposals=7)
    with torch.no_grad():
        [item] = model(torch.rand(1, 3, 96, 96)).detections
    assert item.top_proposals.shape == (7, 4)
    assert (item.top_objectness.diff() <= 0).all()
    assert item.top_objectness.min() >= 0 and item.top_objectness.max() <= 1
    # Every detection stems from a proposal; the best ones are handed out as they went in.
    assert (item.top_proposals[:, 2:] > item.top_proposals[:, :2]).all()


def test_optional_fields_only_on_request():
    model = small_model()
    with torch.no_grad():
        [item] = model(torch.rand(1, 3, 64, 64)).detections
    assert item.roi_features is None and item.refined_boxes is None


def test_batch_mates_do_not_matter():
    model = small_model()
    images = torch.stack(pictures(*[(96, 96)] * 3))
    with torch.no_grad():
        together = model(images).detections
        for image, item in zip(images, together, strict=True):
            [alone] = model(image[None]).detections
            for name in ("boxes", "scores", "class_probs", "proposals", "embedding"):
                torch.testing.assert_close(
                    getattr(item, name), getattr(alone, name), atol=1e-3, rtol=1e-4
                )


def test_embedding_averages_the_picture_and_not_the_letterbox():
    model = small_model()
    # A 64 x 128 picture (height, width) at half its size, in the upper part of a 64 x 64 image.
    image = torch.rand(1, 3, 64, 64)
    image[:, :, 32:] = 0
    frame = frame_of("a", (64, 128), [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    with torch.no_grad():
        [item] = model(image, frames=[frame]).detections
        _, c5 = model.backbone(model.transform(image).tensors)
    torch.testing.assert_close(item.embedding, c5[0, :, :1, :].mean((1, 2)))
    assert not torch.allclose(item.embedding, c5[0].mean((1, 2)))


def test_rounding_adds_no_padding_to_an_embedding():
    # 512 x 308 pixels at 160 reach as far as 96 columns, three cells of 32, and 2e-6 by rounding.
    info = ImageInfo("a", "a", "a.png", (512, 308))
    image, _, frame = EvalTransform(160)(np.ones((512, 308, 3), np.float32), None, info, 0)
    images = DetectionTransform([0.0] * 3, [1.0] * 3, 32)([image], [frame])
    features = torch.zeros(1, 1, 5, 5)
    features[..., :3] = 1
    assert valid_mean(features, images).item() == 1


def test_boxes_of_a_letterboxed_image_stay_in_the_picture():
    model = small_model()
    image = torch.zeros(1, 3, 96, 96)
    image[:, :, :48] = torch.rand(3, 48, 96)
    frame = frame_of("a", (24, 48), [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]])
    with torch.no_grad():
        [item] = model(image, frames=[frame]).detections
    assert len(item.boxes) > 5
    for boxes in (item.boxes, item.proposals, item.top_proposals):
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0 and boxes[:, 2].max() <= 48 and boxes[:, 3].max() <= 24


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        pytest.param(
            [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]], lambda b: b * b.new_tensor([2, 3, 2, 3]), id="scale"
        ),
        pytest.param(
            [[-1.0, 0.0, 64.0], [0.0, 1.0, 0.0]],
            lambda b: torch.stack([64 - b[:, 2], b[:, 1], 64 - b[:, 0], b[:, 3]], 1),
            id="mirror",
        ),
    ],
)
def test_frames_map_every_box_to_original_pixels(affine, expected):
    model = small_model()
    image = torch.rand(1, 3, 64, 64)
    frame = frame_of("a", (192, 128) if affine[0][0] == 2 else (64, 64), affine)
    with torch.no_grad():
        [plain] = model(image).detections
        [mapped] = model(image, frames=[frame]).detections
    assert len(plain.boxes) > 5
    for name in ("boxes", "proposals", "top_proposals"):
        torch.testing.assert_close(getattr(mapped, name), expected(getattr(plain, name)))
    assert torch.equal(plain.scores, mapped.scores)


def test_boxes_are_float32_and_fine_grained_under_bf16():
    model = small_model(anchor_sizes=((64,), (128,), (192,), (256,), (320,)))
    image = torch.rand(1, 3, 384, 384)
    with torch.no_grad():
        [exact] = model(image).detections
        model.autocast_dtype = torch.bfloat16
        [low] = model(image).detections
    for name in ("boxes", "scores", "class_probs", "proposals", "embedding", "top_objectness"):
        assert getattr(low, name).dtype == torch.float32, name
    large = low.boxes[low.boxes > 256]
    large = large[large < 384]
    assert len(large) > 5
    assert (large % 2 != 0).float().mean() > 0.9
    assert len(low.scores.unique()) > 0.9 * len(low.scores)
    torch.testing.assert_close(low.embedding, exact.embedding, atol=0.05, rtol=0.1)
    assert not torch.equal(low.embedding, exact.embedding)


def test_autocast_around_the_model_changes_nothing():
    model = small_model()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        [plain] = model(image).detections
        with torch.autocast("cpu", dtype=torch.bfloat16):
            [inside] = model(image).detections
    assert torch.equal(plain.boxes, inside.boxes)


@pytest.mark.parametrize(
    ("args", "argument", "message"),
    [
        ({"norm": "frozen"}, "norm", "pretrained"),
        ({"pretrained": True, "norm": "group"}, "norm", "frozen or batch"),
        ({"backbone_name": "resnet81"}, "backbone_name", "Did you mean 'resnet18'"),
        ({"pretrained": "no/such.pth"}, "pretrained", "no/such.pth"),
        ({"anchor_sizes": ((16,), (32,))}, "anchor_sizes", "5 lists"),
        ({"anchor_sizes": ((16, 32), (32,), (64,), (8,), (9,))}, "anchor_sizes", "same number"),
        ({"fpn": False, "anchor_sizes": ((16,), (32,))}, "anchor_sizes", "1 lists"),
        ({"returned_layers": (1, 2, 3, 5)}, "returned_layers", "1 to 4"),
        ({"returned_layers": (2, 3, 4)}, "anchor_sizes", "4 levels"),
        ({"trainable_layers": 2}, "trainable_layers", "every layer learns"),
        ({"pretrained": True, "trainable_layers": 9}, "trainable_layers", "0 to 5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_arguments_that_do_not_go_together(args, argument, message):
    args = {"num_classes": 2, "backbone_name": "resnet18"} | args
    [(name, sentence)] = FasterRCNN.check_args(args)
    assert name == argument and message in sentence
    with pytest.raises(ConfigError, match=f"arch.args.{argument}"):
        FasterRCNN(**args)


def test_an_argument_of_an_older_version_is_taken_where_it_asked_for_nothing():
    config = full()
    config["arch"]["args"] |= {"pretrained": False, "min_size": None, "roi_features": False}
    assert "min_size" not in ConfigParser(config, registries()).get("arch.args")
    config["arch"]["args"]["min_size"] = 800
    with pytest.raises(ConfigError, match=r"arch\.args\.min_size"):
        ConfigParser(config, registries())


def test_all_problems_are_told_at_once():
    args = {"num_classes": 2, "norm": "frozen", "trainable_layers": 2, "anchor_sizes": ((8,),)}
    found = FasterRCNN.check_args(args)
    assert [name for name, _ in found] == ["norm", "trainable_layers", "anchor_sizes"]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "float32", id="uint8"),
        pytest.param(torch.full((1, 3, 64, 64), 255.0), "0 to 1|\\[0, 1\\]", id="0..255"),
        pytest.param(torch.rand(1, 1, 64, 64), "3, H, W", id="one channel"),
        pytest.param(torch.full((1, 3, 64, 64), torch.nan), "nan", id="nan"),
        pytest.param([torch.rand(64, 64)], "3, H, W", id="two axes"),
    ],
)
def test_images_that_are_refused(image, message):
    with pytest.raises(DataError, match=message):
        small_model()(image)


@pytest.mark.parametrize(
    "part",
    [
        "backbone.body.conv1.weight",
        "rpn.head.cls_logits.bias",
        "rpn.head.bbox_pred.weight",
        "roi_heads.box_head.fc6.bias",
        "roi_heads.box_predictor.bbox_pred.weight",
    ],
)
def test_nan_weights_are_an_error_and_not_an_empty_answer(part):
    model = small_model()
    with torch.no_grad():
        model.get_parameter(part).fill_(torch.nan)
    frame = frame_of("slice-7", (64, 64), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(UserError, match="not finite on images slice-7"):
        model(torch.rand(1, 3, 64, 64), frames=[frame])


def test_stream_leaves_model_and_random_state_alone():
    model = small_model().train()
    model.autocast_dtype = torch.bfloat16
    frames = [frame_of(str(i), (64, 64), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) for i in range(4)]
    samples = [UnlabelledSample(torch.rand(3, 64, 64), frame) for frame in frames]
    loader = [Batch.collate(samples[:3]), Batch.collate(samples[3:])]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    seen = []
    for batch, output in stream(model, loader, "cpu"):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not output.losses
        seen += [frame.info.image_id for frame in batch.frames]
        assert len(output.detections) == len(batch)
    assert seen == ["0", "1", "2", "3"]
    assert model.training and model.autocast_dtype == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_stream_gives_losses_where_there_are_targets():
    model = small_model()
    target = Target(
        torch.tensor([[10.0, 10.0, 40.0, 40.0]]),
        torch.tensor([1]),
        torch.tensor([False]),
        torch.tensor([True]),
    )
    frame = frame_of("a", (64, 64), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    batch = Batch(torch.rand(1, 3, 64, 64), (target,), (frame,), torch.tensor([False]))
    [(_, output)] = stream(model, [batch], torch.device("cpu"), torch.bfloat16)
    assert set(output.losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    assert all(value.dtype == torch.float32 for value in output.losses.values())


def test_registry_names_the_detector():
    assert MODELS["FasterRCNN"] is FasterRCNN
    assert not any("hook" in name and hooks for name, hooks in vars(small_model()).items())
