"""Channels last and fused steps: the same training, and one that resumes whatever the layout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIDE, make_voc, quick_config, run_train, write_config
from torch import Tensor
from trainings import settings_of, training_of

from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.data.voc import PascalVOC
from med_sslal.model.detectors import FasterRCNN
from med_sslal.trainer.trainer import Trainer


def detector(channels_last: bool) -> FasterRCNN:
    torch.manual_seed(0)
    model = FasterRCNN(
        num_classes=2,
        backbone_name="resnet18",
        norm="group",
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=30,
        fpn_channels=64,
        box_head_size=32,
    )
    if channels_last:
        model.use_channels_last()
    return model


def test_weights_and_maps_have_channels_last():
    model = detector(True).eval()
    assert all(
        weight.is_contiguous(memory_format=torch.channels_last)
        for weight in model.parameters()
        if weight.dim() == 4
    )
    seen: list[Tensor] = []
    for part in (model.backbone.body.conv1, model.rpn.head.cls_logits):
        part.register_forward_hook(lambda layer, given, result: seen.extend([*given, result]))
    with torch.inference_mode():
        model(torch.rand(2, 3, 96, 96))
    assert len(seen) == 12
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in seen)


def test_the_layout_changes_nothing_but_rounding():
    images = torch.rand(2, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    results = []
    for channels_last in (False, True):
        model = detector(channels_last).eval()
        with torch.inference_mode():
            results.append(model(images).detections)
    for plain, other in zip(*results, strict=True):
        torch.testing.assert_close(other.embedding, plain.embedding, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.top_objectness, plain.top_objectness, atol=1e-5, rtol=0)


def trainer_of(
    folder: Path, data: PascalVOC, *, channels_last: bool = True, steps: int = 2, fused: bool
) -> Trainer:
    model = detector(channels_last)
    return training_of(
        folder,
        model,
        data.images,
        data.images.splits["train"][:4],
        torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused),
        settings_of(steps_per_cycle=steps),
        labels=data.labels.annotations,
        class_names=data.labels.class_names,
        side=SIDE,
        batch_size=2,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PascalVOC:
    return PascalVOC(root=str(make_voc(tmp_path_factory.mktemp("data") / "voc")), eval_split=0.4)


def test_a_fused_training_resumes_to_the_same_bits(tmp_path: Path, data: PascalVOC):
    whole = trainer_of(tmp_path / "whole", data, steps=4, fused=True)
    whole.train()
    trainer_of(tmp_path / "cut", data, steps=2, fused=True).train()
    rest = trainer_of(tmp_path / "cut", data, steps=4, fused=True)
    assert rest.resume() is not None
    rest.train()
    for name, value in whole.model_state().items():
        assert torch.equal(rest.model_state()[name], value), name


def test_the_state_of_another_layout_moves_the_right_weights(tmp_path: Path, data: PascalVOC):
    """A fused step goes through weight, gradient and moments in memory order."""
    trainer_of(tmp_path / "cut", data, channels_last=False, steps=2, fused=True).train()
    rests = []
    for channels_last in (False, True):
        rest = trainer_of(
            tmp_path / f"{channels_last}", data, channels_last=channels_last, steps=3, fused=True
        )
        content = load_checkpoint(tmp_path / "cut" / "checkpoint_last.pth")
        rest.optimisation.load_state_dict(content["model"], content["state"]["optimisation"])
        for weight in rest.optimisation.model.parameters():
            weight.grad = torch.full_like(weight, 1e-3)
        rest.optimisation.optimizer.step()
        rests.append(rest.model_state())
    for name, value in rests[0].items():
        torch.testing.assert_close(rests[1][name], value, atol=1e-7, rtol=1e-5)


def first_group(folder: Path, config: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """The options that a run's optimiser had."""
    config |= {"name": "x", "optimizer": optimizer}
    config["al_settings"]["num_cycles"] = 0
    config["trainer"] |= {"epochs": 1}
    path = write_config(folder / "config.json", config)
    name = f"run{len(list(folder.glob('runs/x/run*')))}"
    assert run_train("-c", path, "--run-id", name) == 0
    content = load_checkpoint(folder / "runs" / "x" / name / "cycle_00" / "checkpoint_last.pth")
    groups: list[dict[str, Any]] = content["state"]["optimisation"]["optimizer"]["param_groups"]
    return groups[0]


def test_a_run_takes_fused_steps_unless_the_config_says_how(tmp_path: Path):
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    plain = {"type": "AdamW", "args": {"lr": 1e-3}}
    assert first_group(tmp_path, config, plain)["fused"] is True
    own = {"type": "SGD", "args": {"lr": 1e-3, "foreach": True}}
    group = first_group(tmp_path, config, own)
    assert group["foreach"] is True and not group["fused"]
    group = first_group(tmp_path, config, {"type": "RMSprop", "args": {"lr": 1e-3}})
    assert "fused" not in group


def test_a_run_has_channels_last_unless_the_config_says_no(tmp_path: Path):
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    config["al_settings"]["num_cycles"] = 0
    config["trainer"] |= {"epochs": 1}
    for choice in (True, False):
        config["trainer"]["channels_last"] = choice
        path = write_config(tmp_path / "config.json", config)
        assert run_train("-c", path, "--run-id", str(choice)) == 0
        folder = tmp_path / "runs" / config["name"] / str(choice) / "cycle_00"
        weights = load_checkpoint(folder / "model_best.pth")["model"]
        kernels = [value for value in weights.values() if value.dim() == 4 and value.shape[2] > 1]
        kernels = [value for value in kernels if value.shape[1] > 1]
        format_of = torch.channels_last if choice else torch.contiguous_format
        assert kernels and all(value.is_contiguous(memory_format=format_of) for value in kernels)
