"""A cycle with a student: what it learns from, and the gate that lets it go on or not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_voc, run_train, small_config, write_config

from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.types import Annotation
from med_sslal.ssl.pseudo_labels import PseudoLabeller, PseudoLabels

NOISE = 8
"""Boxes of noise on each image."""


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = load_checkpoint(path)["model"]
    return content


def equal(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cycles, long enough for boxes to be found."""
    root = tmp_path_factory.mktemp("student")
    settings = small_config(make_voc(root / "voc"), root / "runs")
    settings["optimizer"]["args"]["lr"] = 5e-3
    settings["lr_scheduler"] = None
    settings["ssl_settings"] |= {"weight": 2.0, "tail": 0.0}
    settings["trainer"] |= {"steps_per_cycle": 60, "monitor": "off", "val_steps": 1000}
    settings["trainer"] |= {"keep_records": True, "save_period": 1000}
    return write_config(root / "config.json", settings)


@pytest.fixture(scope="module")
def supervised(config: Path) -> Path:
    """The same run on labels alone."""
    off = "ssl_settings.include_pseudolabels=false"
    assert run_train("-c", config, "--run-id", "supervised", "--set", off) == 0
    return config.parent / "runs" / "tiny" / "supervised"


@pytest.mark.slow
def test_noise_is_rejected_and_leaves_the_supervised_run(
    config: Path, supervised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = PseudoLabeller.make

    def noise(self: PseudoLabeller, record: Any, pool: Any, *others: Any, **more: Any) -> Any:
        made, draw = make(self, record, pool, *others, **more), np.random.default_rng(0)
        corners = draw.uniform(0, 40, (len(pool.unlabelled), NOISE, 2))
        boxes = np.concatenate([corners, corners + 16], 2).astype(np.float32)
        ones, no = np.ones(NOISE, dtype=np.int64), np.zeros(NOISE, dtype=bool)
        pairs = zip(pool.unlabelled, boxes, strict=True)
        return PseudoLabels({name: Annotation(own, ones, no) for name, own in pairs}, made.stats)

    monkeypatch.setattr(PseudoLabeller, "make", noise)
    # So heavy that a model of a minute learns nothing beside it.
    heavy = ["--set", "ssl_settings.weight=20.0"]
    assert run_train("-c", config, "--run-id", "noise", *heavy) == 0
    run = supervised.parent / "noise"
    for cycle in ("cycle_00", "cycle_01"):
        own, pure = run / cycle, supervised / cycle
        verdict = read(own / "gate.json")
        assert not verdict["accepted"] and verdict["metric"] == "val_AP50"
        assert verdict["student"] < verdict["supervised"] - 0.01
        assert equal(own / "model_best.pth", pure / "model_best.pth")
        for name in ("predictions.json", "predictions_val.json", "pool.json"):
            assert (own / name).read_bytes() == (pure / name).read_bytes(), name
        metrics = [read(folder / "metrics.json")["test"]["values"] for folder in (own, pure)]
        assert metrics[0] == metrics[1] and metrics[0]["AP50"] > 0
    chosen = [read(folder / "cycle_00" / "selection.json") for folder in (run, supervised)]
    assert chosen[0]["images"] == chosen[1]["images"]
    rows = read(run / "summary.json")["cycles"]
    assert [row["pseudo_accepted"] for row in rows] == [False, False]
    both = [read(run / "cycle_00" / f"{name}.json") for name in ("training", "training_rejected")]
    # To the digits of the table.
    assert rows[0]["minutes"] >= sum(each["seconds"] for each in both) / 60 - 0.01
    log = (run / "train.log").read_text()
    assert "cycle 0: pseudo-labels rejected: val_AP50 " in log and " without them" in log
    assert "without pseudo-labels" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_student_starts_anew_and_goes_on(config: Path, supervised: Path) -> None:
    line = ["--set", "ssl_settings.gate=false", "--set", "al_settings.num_cycles=0"]
    assert run_train("-c", config, "--run-id", "open", *line) == 0
    cycle, pure = supervised.parent / "open" / "cycle_00", supervised / "cycle_00"
    assert equal(cycle / "supervised" / "model_best.pth", pure / "model_best.pth")
    assert not equal(cycle / "model_best.pth", pure / "model_best.pth")
    assert read(cycle / "gate.json") == {
        "accepted": True,
        "metric": None,
        "supervised": None,
        "student": None,
    }
    row = read(cycle.parent / "summary.json")["cycles"][0]
    assert row["pseudo_images"] > 0 and row["pseudo_accepted"]
    assert row["steps"] == 60, "as many labelled images as the supervised model has seen"

    # The same where the supervised model is another run's: its training is not made again.
    assert run_train("-c", config, "--run-id", "taken", *line, "--cycle0-from", supervised) == 0
    taken = supervised.parent / "taken" / "cycle_00"
    assert (taken / "supervised" / "model_best.pth").samefile(pure / "model_best.pth")
    assert equal(taken / "model_best.pth", cycle / "model_best.pth")
    for name in ("predictions.json", "predictions_val.json", "pseudo_labels.json", "pool.json"):
        assert (taken / name).read_bytes() == (cycle / name).read_bytes(), name


@pytest.mark.slow
def test_the_oracle_puts_the_truth_in_place_of_pseudo_labels(
    config: Path, supervised: Path
) -> None:
    line = ["--set", "ssl_settings.oracle=true", "--set", "al_settings.num_cycles=0"]
    line += ["--cycle0-from", supervised]
    assert run_train("-c", config, "--run-id", "oracle", *line) == 0
    cycle = config.parent / "runs" / "tiny" / "oracle" / "cycle_00"
    # The truth is not graded by itself, and has no scores to tell sure from unsure by.
    assert read(cycle / "metrics.json")["pseudo_quality"] == {}
    pseudo = PseudoLabels.read(cycle / "pseudo_labels.json")
    assert not pseudo.examples and pseudo.stats["class0"].mean_score is None
    count = sum(label.n_objects for label in pseudo.labels.values())
    assert pseudo.stats["class0"].count == count == len(pseudo.labels), "one in each image"
    assert all(label.regress.all() for label in pseudo.labels.values())
    assert "The truth of the images" in (cycle.parent / "report.html").read_text()


@pytest.mark.slow
def test_a_run_with_regions_beside_its_labels_goes_on(config: Path, supervised: Path) -> None:
    line = ["ssl_settings.args.ignore_unmatched=true", "ssl_settings.args.threshold=0.06"]
    line += ["ssl_settings.args.ignore_floor=0.05", "al_settings.num_cycles=0"]
    words = [word for one in line for word in ("--set", one)]
    words += ["--cycle0-from", str(supervised)]
    assert run_train("-c", config, "--run-id", "regions", *words) == 0
    run = supervised.parent / "regions"
    assert PseudoLabels.read(run / "cycle_00" / "pseudo_labels.json").regions
    assert run_train("--resume", run, "--set", "al_settings.num_cycles=1") == 0
    assert len(read(run / "summary.json")["cycles"]) == 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["ssl_settings.mode=mean_teacher"], "the run trains on labels alone"),
        (
            ["ssl_settings.include_pseudolabels=true", "al_settings.args.init_num=all"],
            "so that there is no student",
        ),
    ],
    ids=["a mode that is not used", "nothing unlabelled"],
)
def test_a_student_that_there_will_not_be_is_warned_of(
    tmp_path: Path, line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    settings["ssl_settings"] = {"include_pseudolabels": False}
    settings["al_settings"]["num_cycles"] = 0
    path = write_config(tmp_path / "config.json", settings)
    assert run_train("-c", path, "--dry-run", *(w for one in line for w in ("--set", one))) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["ssl_settings.gate_metric=val_f2"], "ssl_settings.gate_metric: val_f2 is not measured"),
        (['metrics=["box_quality"]'], "val_AP50 or val_sens_mean is not measured"),
        (["ssl_settings.tail=1.0"], "ssl_settings.tail: found 1.0"),
        (["ssl_settings.tail=0.9", "trainer.steps_per_cycle=9"], "leaves the student nothing"),
        (["ssl_settings.args.threshold=0"], "ssl_settings.args.threshold: found 0"),
    ],
    ids=[
        "unknown gate metric",
        "nothing for the gate",
        "a tail of all steps",
        "a tail",
        "threshold 0",
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    tmp_path: Path, line: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = small_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    path = write_config(tmp_path / "config.json", settings)
    words_of_line = [word for one in line for word in ("--set", one)]
    assert run_train("-c", path, *words_of_line) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
