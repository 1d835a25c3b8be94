"""What the pool record holds on request, from a run of a trained detector."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import files_of, make_voc, quick_config, run_train, write_config

from med_sslal.al.record import PLAIN, PoolRecord
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.registries import registries
from med_sslal.cli.train import build_setup
from med_sslal.config.parse_config import ConfigParser
from med_sslal.trainer.inference import loader_of
from med_sslal.utils.boxes import paired_iou

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose images are made larger, and whose strategy asks for all that there is."""
    folder = tmp_path_factory.mktemp("columns")
    config = quick_config(make_voc(folder / "voc"), folder / "runs")
    config["image_size"] = 96
    config["arch"]["args"]["box_head_dropout"] = 0.2
    config["al_settings"]["num_cycles"] = 1
    ensemble = {"type": "ensemble_disagreement", "args": {"passes": 2}}
    config["al_settings"]["args"]["al_criterion"] = [
        ["flip_consistency", ensemble, "box_self_consistency"],
        "class_conditional_similarity",
    ]
    config["trainer"] |= {"epochs": 3, "keep_records": True}
    return write_config(folder / "config.json", config)


@pytest.fixture(scope="module")
def cycle(config: Path) -> Path:
    assert run_train("-c", config, "--run-id", "x") == 0
    return config.parent / "runs" / "tiny" / "x" / "cycle_00"


def test_a_run_records_what_its_strategy_reads(cycle: Path) -> None:
    record = PoolRecord.open(cycle / "record")
    assert list(record.sections) == [PLAIN, "flip", "dropout_1", "dropout_2"]
    n_boxes = len(record.section(PLAIN).scores)
    assert record.column("roi_features").shape == (n_boxes, 32)
    assert record.column("refined_boxes").shape == (n_boxes, 4)
    values = json.loads((cycle / "selection.json").read_text())["images"][0]["values"]
    assert {"flip_consistency", "ensemble_disagreement", "box_self_consistency"} <= values.keys()


def test_refined_boxes_are_the_box_heads_own_answer_for_the_final_boxes(
    config: Path, cycle: Path
) -> None:
    parser = ConfigParser.from_file(config, registries())
    setup = build_setup(
        parser, build_dataset(parser), devices_of(parser, "cpu"), show_progress=False
    )
    model = setup.detector.model().eval()
    model.load_state_dict(load_checkpoint(cycle / "model_best.pth")["model"])
    record = PoolRecord.open(cycle / "record")
    section, refined = record.section(PLAIN), record.column("refined_boxes")
    row = int(section.counts.argmax())
    rows = slice(*section.offsets[row : row + 2].tolist())
    [batch] = loader_of(setup, [str(section.image_ids[row])], None)
    scale, shift = batch.frames[0].to_original.split([2, 1], dim=1)
    assert scale[0, 0] == pytest.approx(64 / 96)
    with torch.no_grad():
        network = model.transform(batch.images, batch.frames)
        features, _ = model.backbone(network.tensors)
        boxes = torch.from_numpy(section.boxes[rows].copy()).view(-1, 2) - shift[:, 0]
        rois = (boxes @ torch.linalg.inv(scale).T).view(-1, 4)
        heads = model.roi_heads
        hidden = heads.box_head(heads.box_roi_pool(features, [rois], network.image_sizes))
        _, deltas = heads.box_predictor(hidden)
        decoded = heads.box_coder.decode(deltas, [rois])
    own = decoded[torch.arange(len(rois)), torch.from_numpy(section.labels[rows].copy())]
    height, width = network.image_sizes[0]
    own = torch.stack([own[:, 0::2].clamp(0, width), own[:, 1::2].clamp(0, height)], dim=2)
    wanted = (own.view(-1, 2) @ scale.T + shift[:, 0]).view(-1, 4)
    np.testing.assert_allclose(refined[rows], wanted.numpy(), atol=5e-3)
    iou = paired_iou(section.boxes[rows], refined[rows])
    assert len(rois) > 3 and 0 < iou.min() < 0.98


def test_a_dry_run_tries_it_and_leaves_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(config.parent)
    assert run_train("-c", config, "--dry-run") == 0
    assert files_of(config.parent) == before
