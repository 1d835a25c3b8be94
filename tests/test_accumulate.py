"""Gradient accumulation: parts of a batch give the training of the whole batch."""

from pathlib import Path

import pytest
import torch
from tiny import SIDE, make_voc, run_train, small_config, write_config
from trainings import settings_of, training_of

from med_sslal.data.voc import PascalVOC
from med_sslal.model.detectors import FasterRCNN
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.util import read_json

N_IMAGES, N_PSEUDO, BATCH = 8, 2, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PascalVOC:
    return PascalVOC(root=str(make_voc(tmp_path_factory.mktemp("data") / "voc")), eval_split=0.4)


def detector(norm: str) -> FasterRCNN:
    torch.manual_seed(1)
    return FasterRCNN(
        num_classes=2,
        backbone_name="resnet18",
        # The architecture of frozen norm, without its weights.
        pretrained=norm == "frozen",
        load_pretrained=False,
        norm=norm,
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=30,
        fpn_channels=64,
        box_head_size=32,
    )


def trained(folder: Path, dataset: PascalVOC, norm: str, accumulate: int) -> Trainer:
    """Three steps of SGD; returns the trainer."""
    model = detector(norm)
    # With samplers that take everything, nothing is left to chance.
    for part in (model.rpn, model.roi_heads):
        part.fg_bg_sampler.batch_size_per_image = 100_000
    ids = dataset.images.splits["train"][:N_IMAGES]
    trainer = training_of(
        folder,
        model,
        dataset.images,
        ids,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        settings_of(steps_per_cycle=3, accumulate=accumulate, grad_clip=5.0),
        labels=dataset.labels.annotations,
        class_names=dataset.labels.class_names,
        side=SIDE,
        batch_size=BATCH,
        n_pseudo=N_PSEUDO,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_weights_are_those_of_the_whole_batch(tmp_path: Path, dataset: PascalVOC, norm: str):
    """Parts of 3, 2 and 1 images, of batches of 4 + 2 and 2 + 2 images.

    Rounding differs between processors and sizes of parts, and may flip what lies on an edge: 5 %
    of an update were seen so, and 0.1 % without.
    """
    start = detector(norm).state_dict()
    whole = trained(tmp_path / "whole", dataset, norm, 1)
    for accumulate in (2, 3, 6):
        parts = trained(tmp_path / str(accumulate), dataset, norm, accumulate)
        for name, value in whole.model_state().items():
            apart = (parts.model_state()[name] - value).norm()
            assert apart <= 0.1 * (value - start[name]).norm(), name
        difficulties = [run.model_facts()["class_difficulty"] for run in (parts, whole)]
        assert difficulties[0] == pytest.approx(difficulties[1], rel=1e-3)
        for one, other in zip(parts.history, whole.history, strict=True):
            assert one == pytest.approx(other, rel=1e-3)


def test_a_step_takes_batch_size_times_accumulate_images(tmp_path: Path):
    """Six labelled images: three steps of two each become one of six, also with batches of one."""
    data = make_voc(tmp_path / "voc")
    for name, batch_size, accumulate, steps in (("a", 2, 1, 3), ("b", 2, 3, 1), ("c", 1, 6, 1)):
        config = small_config(data, tmp_path / "results")
        config |= {"name": name, "batch_size": batch_size}
        config["al_settings"]["num_cycles"] = 0
        config["trainer"] |= {"epochs": 1, "accumulate": accumulate}
        path = write_config(tmp_path / f"{name}.json", config)
        assert run_train("-c", path, "--run-id", "run") == 0
        training = read_json(tmp_path / "results" / name / "run" / "cycle_00" / "training.json")
        assert training["steps"] == steps
