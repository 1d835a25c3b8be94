"""In fp32 a selection depends on model, images and seed alone: not on batches or file order."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from records import ALL_VIEWS
from tiny import quick_config, run_train, write_config

from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.al.al_helpers import ActiveLearningHelper
from med_sslal.al.pool import Pool
from med_sslal.al.record import OPTIONAL_COLUMNS, PLAIN, PoolRecord, RecordHeader
from med_sslal.al.scoring import record_pool, see
from med_sslal.base.base_model import BaseModel
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.registries import registries
from med_sslal.cli.train import build_setup
from med_sslal.config.parse_config import ConfigParser
from med_sslal.trainer.inference import loader_of, predict
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.train_util import random_states

BUDGET = 7
BOX_ALONE = (
    {"type": "localization_tightness", "args": {"classification": False}},
    {"type": "box_self_consistency", "args": {"confidence": False}},
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSetup, BaseModel]:
    """A setup on a small phantom, and a detector after a few steps on it."""
    folder = tmp_path_factory.mktemp("stability")
    config = quick_config(folder, folder / "runs")
    config["dataset"] = {
        "type": "DeepLesionPhantom",
        "args": {
            "root": str(folder / "phantom"),
            "patients": 20,
            "size": 64,
            "seed": 0,
            "eval_split": 0.4,
        },
    }
    config["al_settings"]["num_cycles"] = 0
    config["al_settings"]["args"]["init_num"] = 8
    config["arch"]["args"]["box_head_dropout"] = 0.3
    config["lr_scheduler"] = None
    config["trainer"]["epochs"] = 3
    path = write_config(folder / "config.json", config)
    assert run_train("-c", path, "--run-id", "x") == 0
    parser = ConfigParser.from_file(path, registries())
    setup = build_setup(
        parser, build_dataset(parser), devices_of(parser, "cpu"), show_progress=False
    )
    model = setup.detector.model()
    best = load_checkpoint(folder / "runs" / "tiny" / "x" / "cycle_00" / "model_best.pth")
    model.load_state_dict(best["model"])
    return setup, model


def with_batches_of(setup: RunSetup, batch_size: int) -> RunSetup:
    return replace(setup, compute=replace(setup.compute, batch_size=batch_size))


def pool_of(setup: RunSetup) -> Pool:
    pool = Pool((), setup.images.splits["train"])
    return pool.label(setup.strategy.helper.initial(pool))


def score(
    trained: tuple[RunSetup, BaseModel], path: Path, batch_size: int, shuffled: int | None
) -> PoolRecord:
    setup, model = trained
    setup, pool = with_batches_of(setup, batch_size), pool_of(setup)
    unlabelled, labelled = list(pool.unlabelled), list(pool.labelled)
    if shuffled is not None:
        random.Random(shuffled).shuffle(unlabelled)
        random.Random(shuffled).shuffle(labelled)
    names = setup.class_names
    cpu, wanted = torch.device("cpu"), {"views": ALL_VIEWS, "columns": tuple(OPTIONAL_COLUMNS)}
    return record_pool(
        pool,
        see(model, loader_of(setup, unlabelled, None), cpu, None, **wanted),
        see(model, loader_of(setup, labelled, None), cpu, None),
        path,
        RecordHeader(
            images_fingerprint=setup.images.fingerprint(),
            model_hash="m",
            config_hash="c",
            class_names=names,
            class_counts=dict.fromkeys(names, 8),
            class_difficulty=dict.fromkeys(names, 0.5),
        ),
        **wanted,
    )


@pytest.fixture(scope="module")
def records(
    trained: tuple[RunSetup, BaseModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, PoolRecord]:
    folder = tmp_path_factory.mktemp("records")
    cases = {"1": (1, None), "3": (3, None), "8": (8, None), "3 shuffled": (3, 5)}
    return {
        name: score(trained, folder / name.replace(" ", "_"), *case) for name, case in cases.items()
    }


def test_the_passes_saw_something_to_choose_from(records: dict[str, PoolRecord]) -> None:
    sections = [record.section(PLAIN) for record in records.values()]
    assert len(sections[0]) >= 3 * BUDGET
    assert len(sections[0].scores) >= len(sections[0])
    assert len(np.unique(np.round(sections[0].scores, 3))) > 10
    for section in sections[1:]:
        assert np.allclose(section.embeddings, sections[0].embeddings, atol=1e-4)


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("criterion", [*CRITERIA, *BOX_ALONE], ids=str)
def test_the_selection_is_the_same(
    trained: tuple[RunSetup, BaseModel],
    records: dict[str, PoolRecord],
    criterion: str | dict[str, Any],
    selector: str,
) -> None:
    helper = ActiveLearningHelper(8, BUDGET, [criterion, selector], seed=3)
    pool = pool_of(trained[0])
    found = {name: helper.query(record, pool, BUDGET, 0) for name, record in records.items()}
    first = found["1"]
    assert len(first.items) == BUDGET
    for selection in found.values():
        assert selection.image_ids == first.image_ids
        # A value at the edge of a rounding step may fall to either side; no more than that.
        for name, values in first.scores.items():
            assert selection.scores[name] == pytest.approx(values, abs=1.01e-4)


def test_validation_repeats_and_leaves_the_random_state_alone(
    trained: tuple[RunSetup, BaseModel],
) -> None:
    setup, model = trained
    labels = setup.split_labels("val")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    before, losses, found = random_states(), [], []
    for batch_size in (4, 4, 4, 4, 4):
        loader = loader_of(with_batches_of(setup, batch_size), tuple(labels), labels)
        predictions, loss = predict(model, loader, setup, stop=StopRequest(), title="val")
        losses.append(loss)
        found.append([prediction.scores.tolist() for prediction in predictions.values()])
    after = random_states()
    assert len(set(losses)) == 1 and all(scores == found[0] for scores in found)
    assert torch.equal(before.pop("torch"), after.pop("torch"))
    before.pop("cuda"), after.pop("cuda")
    assert before == after
    assert model.training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
