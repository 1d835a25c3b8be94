"""Weights that a detector begins with: its own, a backbone's, and files that are neither."""

import os
from pathlib import Path

import pytest
import torch
from test_model import spread, stock_resnet18

from med_sslal.model.backbone import BACKBONES
from med_sslal.model.detectors import FasterRCNN, RetinaNet
from med_sslal.model.norm import FastFrozenNorm
from med_sslal.utils.errors import CheckpointError


@pytest.fixture(scope="module")
def stock_file(tmp_path_factory) -> Path:
    """A stock detector's state dict as a file, three classes."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "stock.pth"
    torch.save(spread(stock_resnet18(3), 5).state_dict(), path)
    return path


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "checkpoint"])
def test_detector_weights_load_from_a_file(stock_file, tmp_path, wrapped):
    path = stock_file
    state = torch.load(stock_file, weights_only=True)
    if wrapped:
        path = tmp_path / "checkpoint.pth"
        torch.save({"model": state, "epoch": 3}, path)
    model = FasterRCNN(num_classes=3, backbone_name="resnet18", pretrained=str(path))
    assert any(isinstance(module, FastFrozenNorm) for module in model.modules())
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in own)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "backbone.body.layer2.0.conv1.weight" in trainable
    assert "backbone.body.layer1.0.conv1.weight" not in trainable


def test_another_class_count_gets_a_new_classifier_only(stock_file):
    state = torch.load(stock_file, weights_only=True)
    model = FasterRCNN(num_classes=2, backbone_name="resnet18", pretrained=str(stock_file))
    own = model.state_dict()
    assert own["roi_heads.box_predictor.cls_score.weight"].shape == (2, 1024)
    kept = [name for name in own if "box_predictor" not in name]
    assert all(torch.equal(own[name], state[name]) for name in kept)


def test_imagenet_file_loads_into_the_backbone(tmp_path):
    from torchvision.models import resnet18

    network, path = resnet18(weights=None), tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    model = FasterRCNN(num_classes=2, backbone_name="resnet18", pretrained=str(path))
    own = model.backbone.body.state_dict()
    theirs = network.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in own.items())


def test_imagenet_weights_go_through_torchs_cache(tmp_path, monkeypatch):
    """The real download path, with a file in the cache instead of the network."""
    from torchvision.models import mobilenet_v3_large

    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    network = mobilenet_v3_large(weights=None)
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    url = BACKBONES["mobilenet_v3_large"].weights.url
    torch.save(network.state_dict(), cache / url.rsplit("/", 1)[1])
    model = FasterRCNN(num_classes=2, backbone_name="mobilenet_v3_large", pretrained=True)
    weight = model.backbone.body.state_dict()["16.0.weight"]
    assert torch.equal(weight, network.state_dict()["features.16.0.weight"])


@pytest.mark.skipif("MED_SSLAL_TEST_DATA" not in os.environ, reason="MED_SSLAL_TEST_DATA not set")
@pytest.mark.parametrize("detector", [FasterRCNN, RetinaNet])
def test_mobilenet_v2_takes_real_imagenet_weights(detector):
    folder = Path(os.environ["MED_SSLAL_TEST_DATA"]) / "weights"
    path = folder / "mobilenet_v2_imagenet_features.pth"
    if not path.is_file():
        pytest.skip(f"no {path.name} in MED_SSLAL_TEST_DATA")
    model = detector(
        num_classes=2, backbone_name="mobilenet_v2", pretrained=str(path), fpn_channels=32
    ).eval()
    own, theirs = model.backbone.body.state_dict(), torch.load(path, weights_only=True)
    assert all(torch.equal(own[name], theirs[f"features.{name}"]) for name in own)
    assert model.backbone.strides == (4, 8, 16, 32)
    # The last blocks at each stride, which have seen most: the first give half the AP50.
    assert [block[0].in_channels for block in model.backbone.fpn.inner_blocks][-2:] == [96, 320]
    with torch.no_grad():
        [item] = model(torch.rand(1, 3, 64, 64)).detections
    assert item.embedding.shape == (320,) and item.embedding.isfinite().all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("missing", "without backbone.fpn", id="weight missing"),
        pytest.param("extra", "unknown mask.weight", id="weight left over"),
        pytest.param("shape", "instead of", id="other architecture"),
        pytest.param("pickle", "no readable checkpoint", id="not tensors"),
        pytest.param("text", "no readable checkpoint", id="not a torch file"),
        pytest.param("plain", "no state dict", id="no state dict"),
    ],
)
def test_bad_weights_files_end_in_one_sentence(stock_file, tmp_path, content, message):
    state = torch.load(stock_file, weights_only=True)
    path = tmp_path / "bad.pth"
    args = {"num_classes": 3, "backbone_name": "resnet18", "pretrained": str(path)}
    if content == "missing":
        del state["backbone.fpn.inner_blocks.0.0.bias"]
    elif content == "extra":
        state["mask.weight"] = torch.zeros(1)
    elif content == "shape":
        args["box_head_size"] = 32
    elif content == "pickle":
        state = {"model": Path}
    elif content == "plain":
        state = {"epoch": 3}
    torch.save(state, path)
    if content == "text":
        path.write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=message):
        FasterRCNN(**args)


def test_architecture_without_reading_the_weights():
    """A checkpoint is loaded next: the file need not exist any more."""
    model = FasterRCNN(
        num_classes=2, backbone_name="resnet18", pretrained="gone.pth", load_pretrained=False
    )
    assert any(isinstance(module, FastFrozenNorm) for module in model.modules())
