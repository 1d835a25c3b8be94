"""Whole runs through the doors a person uses: what they leave behind, and what they say."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import (
    SUPERVISED,
    files_of,
    make_voc,
    quick_config,
    run_test,
    run_train,
    wait_for,
    write_config,
)

from med_sslal.base.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[1]
SHORT = ["--set", "al_settings.num_cycles=0", "--set", "trainer.epochs=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_voc(tmp_path_factory.mktemp("run") / "voc")


@pytest.fixture
def config(data: Path, tmp_path: Path) -> Path:
    return write_config(tmp_path / "config.json", quick_config(data, tmp_path / "runs"))


@pytest.fixture(scope="module")
def finished(data: Path) -> tuple[Path, str]:
    """A finished run's folder, and what it said."""
    config = quick_config(data, data.parent / "runs")
    config["trainer"] |= {"tensorboard": True, "verbosity": 2}
    path = write_config(data.parent / "config.json", config)
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(sys.stdout, "write", lambda text: said.append(text) or len(text))
        assert run_train("-c", path, "--run-id", "one") == 0
    return data.parent / "runs" / "tiny" / "one", "".join(said)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_run_folder_holds_what_the_design_says(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    files = files_of(folder)
    every_cycle = {"model_best.pth", "checkpoint_last.pth", "metrics.json", "predictions.json"}
    wanted = {"config.json", "environment.json", "train.log", "summary.json", "results.csv"}
    wanted |= {f"cycle_{cycle:02d}/{name}" for cycle in (0, 1, 2) for name in every_cycle}
    wanted |= {"cycle_00/selection.json", "cycle_01/selection.json"}
    wanted |= {"cycle_00/pseudo_labels.json", "cycle_00/gate.json", "cycle_01/record/header.json"}
    wanted |= {"cycle_00/supervised/model_best.pth", "cycle_00/supervised/training.json"}
    wanted |= {"cycle_00/finds.json", "cycle_01/finds.json", "cycle_01/record_val/header.json"}
    wanted |= {"learning_curve.png", "froc.png", "overlays.png"}
    assert wanted <= files
    assert {name + ".sha256" for name in files if name.endswith(".pth")} <= files
    # keep_checkpoints best_last, keep_records 1, nothing temporary, and no fourth training.
    assert not [name for name in files if "epoch" in name or "previous" in name]
    dropped = ("cycle_00/record", "cycle_01/supervised/record", "cycle_03")
    assert not [name for name in files if name.startswith(dropped)]
    assert not [name for name in files if Path(name).name.startswith(".")]
    for cycle in ("cycle_00", "cycle_01", "cycle_02"):
        assert any(name.startswith(f"tensorboard/{cycle}/events") for name in files)
    board = EventAccumulator(str(folder / "tensorboard" / "cycles"))
    board.Reload()
    tags = {f"pseudo_labels/{key}/class0" for key in ("boxes_per_image", "threshold", "recall")}
    tags |= {"test_AP50", "val_AP50", "gate/student", "gate/supervised", "gate/accepted"}
    assert tags <= set(board.Tags()["scalars"])
    shown = [(event.step, event.value) for event in board.Scalars("test_AP50")]
    rows = read(folder / "summary.json")["cycles"]
    assert shown == [(row["cycle"], pytest.approx(row["test_AP50"])) for row in rows]


def test_the_pointer_to_the_newest_run_is_relative(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    link = folder.parents[1] / "latest"
    assert link.is_symlink() and not link.readlink().is_absolute()
    assert link.resolve() == folder.resolve()


def test_the_labelled_set_grows_by_the_budget_and_ends_with_what_is_left(
    finished: tuple[Path, str],
) -> None:
    folder, said = finished
    train = set(read(folder / "split.json")["train"])
    pools = [read(folder / f"cycle_{cycle:02d}" / "pool.json") for cycle in (0, 1, 2)]
    assert [len(pool["labelled"]) for pool in pools] == [4, 9, 12]
    for pool in pools:
        assert set(pool["labelled"]) | set(pool["unlabelled"]) == train
        assert not set(pool["labelled"]) & set(pool["unlabelled"])
    for cycle in (0, 1):
        chosen = read(folder / f"cycle_{cycle:02d}" / "selection.json")["image_ids"]
        assert pools[cycle + 1]["labelled"] == [*pools[cycle]["labelled"], *chosen]
    assert "only 3 unlabelled images are left, fewer than budget_num 5" in said
    assert "cycle 2 of 3 is the last" in said


def test_pseudo_labels_never_meet_labels(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    pseudo = set(read(folder / "cycle_00" / "pseudo_labels.json")["labels"])
    pool = read(folder / "cycle_00" / "pool.json")
    assert pseudo and pseudo <= set(pool["unlabelled"])
    assert len(pseudo) == read(folder / "summary.json")["cycles"][0]["pseudo_images"]
    assert not (folder / "cycle_02" / "pseudo_labels.json").exists(), "nothing is unlabelled then"


def test_a_selection_gives_every_score_and_reason(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    selection = read(folder / "cycle_00" / "selection.json")
    unlabelled = read(folder / "cycle_00" / "pool.json")["unlabelled"]
    assert selection["criteria"] == ["localization_tightness", "k_means_diversity"]
    assert sorted(selection["scores"]["localization_tightness"]) == unlabelled
    assert [image["rank"] for image in selection["images"]] == [1, 2, 3, 4, 5]
    assert [image["image_id"] for image in selection["images"]] == selection["image_ids"]
    assert all(image["reason"] and image["group_id"] for image in selection["images"])
    assert selection["seed"] == 3 and len(selection["model_hash"]) == 64


def test_the_tables_agree(finished: tuple[Path, str]) -> None:
    folder, said = finished
    rows = read(folder / "summary.json")["cycles"]
    with (folder / "results.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(rows) == 3
    for row, line in zip(rows, table, strict=True):
        assert {name: "" if value is None else str(value) for name, value in row.items()} == line
        metrics = read(folder / f"cycle_{row['cycle']:02d}" / "metrics.json")
        assert metrics["row"] == row
        for split in ("val", "test"):
            for name, value in metrics[split]["values"].items():
                assert row[f"{split}_{name}"] == value
    for name in ("sens_0.5fp", "sens_1fp", "sens_2fp", "sens_4fp", "sens_mean", "AP50", "AP"):
        assert 0 <= rows[0][f"test_{name}"] <= 1
    last = said.strip().splitlines()
    assert any(line.split()[:3] == ["2", "12", "12"] for line in last)
    assert last[-2:] == [f"results: {folder}", f"report: {folder / 'report.html'}"]


def test_the_log_and_the_first_words(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert said.index(f"run folder: {folder}") < said.index("cycle 0/3")
    assert re.search(r"take at most about [0-9.]+ GiB; [0-9.]+ GiB are free", said)
    log = (folder / "train.log").read_text()
    assert "DEBUG" in log and "cycle 1/3: training on 9 labelled" in log


def test_the_disk_that_numbered_checkpoints_take_goes_by_steps(config: Path) -> None:
    """1000 epochs would be more than 20 GiB; one step is one epoch."""
    words = ("keep_checkpoints=all", "save_period=1", "epochs=1000", "steps_per_cycle=1")
    settings = [word for one in words for word in ("--set", f"trainer.{one}")]
    assert run_train("-c", config, "--run-id", "x", *SHORT[:2], *settings) == 0
    folder = config.parent / "runs" / "tiny" / "x"
    found = re.search(r"take at most about ([0-9.]+) GiB", (folder / "train.log").read_text())
    assert found is not None and float(found[1]) < 1


def test_checkpoints_are_plain_and_hold_what_a_continuation_needs(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    for path in folder.rglob("*.pth"):
        torch.load(path, weights_only=True)
    # The best model of a student may have given way to the supervised one.
    part = folder / "cycle_01" / "supervised"
    last = load_checkpoint(part / "checkpoint_last.pth")
    assert set(last["state"]) >= {"optimisation", "training_step", "hooks", "sums"}
    assert set(last["random"]) == {"python", "numpy", "torch", "cuda"}
    assert last["cycle"] == 1 and last["epoch"] == 2 and last["batch"] == 0
    assert last["pool"] == read(folder / "cycle_01" / "pool.json")
    assert last["config"] == read(folder / "config.json")
    assert last["monitor"]["best_epoch"] in (1, 2)
    best = load_checkpoint(part / "model_best.pth")
    assert best["epoch"] == last["monitor"]["best_epoch"] and "state" not in best


def test_predictions_are_coco(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    found = read(folder / "cycle_02" / "predictions.json")
    ids = {image["image_id"]: image["id"] for image in found["images"]}
    assert sorted(ids) == sorted(read(folder / "split.json")["test"])
    assert min(ids.values()) >= 1
    assert all(set(image) >= {"id", "image_id", "file_name"} for image in found["images"])
    assert found["annotations"], "the last model finds something"
    for row in found["annotations"]:
        assert row["image_id"] in ids.values() and row["category_id"] == 1
        assert 0 <= row["score"] <= 1
        x, y, width, height = row["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 64.001 and y + height <= 64.001


@pytest.mark.parametrize("named", ["", "cycle_02/model_best.pth", "cycle_00/model_best.pth"])
def test_test_repeats_the_numbers_of_the_run(
    finished: tuple[Path, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    before = set(folder.glob("test_*"))
    while time.time() % 1 > 0.5:  # the folders are named by the second
        time.sleep(0.05)
    assert run_test("-r", folder / named) == 0
    (out,) = set(folder.glob("test_*")) - before
    assert files_of(out) >= {"metrics.json", "predictions.json", "froc.png", "overlays.png"}
    cycle = folder / (named.split("/")[0] or "cycle_02")
    again, first = read(out / "metrics.json"), read(cycle / "metrics.json")["test"]
    assert again["values"] == first["values"] and again["intervals"] == first["intervals"]
    assert read(out / "predictions.json") == read(cycle / "predictions.json")
    assert "sens_mean" in capsys.readouterr().out
    out.rename(out.with_name(f"done_{len(before)}_{named.replace('/', '_')}"))


def test_test_on_validation(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert run_test("-r", folder, "--split", "val", "-d", "cpu") == 0
    (out,) = folder.glob("val_*")
    assert (
        read(out / "metrics.json")["values"]
        == (read(folder / "cycle_02" / "metrics.json")["val"]["values"])
    )


@pytest.mark.slow
def test_an_own_config_of_a_run_starts_the_same_run(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = finished
    assert run_train(
        "-c", folder / "config.json", "--set", f"trainer.save_dir={tmp_path}", *SHORT
    ) == 0  # fmt: skip
    (again,) = (tmp_path / "tiny").iterdir()
    assert re.fullmatch(r"\d{8}_\d{6}_s3", again.name)
    assert read(again / "cycle_00" / "pool.json") == read(folder / "cycle_00" / "pool.json")
    first, second = (load_checkpoint(run / "initial.pth")["model"] for run in (folder, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_init_from_starts_with_the_weights_of_a_checkpoint(
    finished: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    source = finished[0] / "cycle_02" / "model_best.pth"
    assert run_train("-c", config, "--init-from", source, "--run-id", "x", *SHORT) == 0
    run = tmp_path / "runs" / "tiny" / "x"
    wanted, initial = load_checkpoint(source)["model"], load_checkpoint(run / "initial.pth")
    assert all(torch.equal(wanted[name], initial["model"][name]) for name in wanted)
    assert initial["init_from"] == str(source)
    first = read(run / "cycle_00" / "training.json")["history"][0]["loss"]
    scratch = read(finished[0] / "cycle_00" / "training.json")["history"][0]["loss"]
    assert first < scratch


@pytest.mark.slow
def test_restart_continue_goes_on_from_the_cycle_before(config: Path, tmp_path: Path) -> None:
    # A rate of 0: the weights that a cycle ends with are those that it started from.
    line = ["--set", "al_settings.args.restart=continue", "--set", "al_settings.num_cycles=1"]
    line += ["--set", "ssl_settings.include_pseudolabels=false"]
    assert run_train("-c", config, "--run-id", "x", *line) == 0
    line = ["--set", "optimizer.args.lr=0.0", "--set", "trainer.epochs=1", *line]
    best = tmp_path / "runs" / "tiny" / "x" / "cycle_01" / "model_best.pth"
    assert run_train("-c", config, "--run-id", "y", "--init-from", best, *line) == 0
    run = tmp_path / "runs" / "tiny" / "y"
    ends = [load_checkpoint(run / f"cycle_0{cycle}" / "model_best.pth") for cycle in (0, 1)]
    assert all(torch.equal(ends[0]["model"][k], ends[1]["model"][k]) for k in ends[0]["model"])
    run = tmp_path / "runs" / "tiny" / "x"
    losses = [
        read(run / f"cycle_0{cycle}" / "training.json")["history"][0]["loss"] for cycle in (0, 1)
    ]
    assert losses[1] < losses[0]


def test_dry_run_leaves_nothing(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(tmp_path)
    assert run_train("-c", config, "--dry-run") == 0
    assert files_of(tmp_path) == before and not (tmp_path / "runs").exists()
    assert "nothing is left" in capsys.readouterr().out


@pytest.mark.parametrize(("num_cycles", "warned"), [(3, True), (2, False)])
def test_more_queries_than_the_pool_feeds_are_told_at_the_start(
    config: Path, num_cycles: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--dry-run", "--set", f"al_settings.num_cycles={num_cycles}")
    assert run_train("-c", config, *words) == 0
    said = "".join(capsys.readouterr())
    told = f"al_settings.num_cycles is {num_cycles}, but all 12 images of the pool are labelled"
    assert (told in said) == warned


def test_print_config_is_a_config_again(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("-c", config, "--lr", "0.5", "--bs", "7", "--print-config") == 0
    text = capsys.readouterr().out
    assert "// default 4" in text and not (tmp_path / "runs").exists()
    (tmp_path / "again.json").write_text(text)
    assert run_train("-c", tmp_path / "again.json", "--print-config") == 0
    assert capsys.readouterr().out == text
    assert '"lr": 0.5' in text and '"batch_size": 7' in text


def test_help_config_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_train("--help-config") == 0
    text = capsys.readouterr().out
    for word in ("trainer.steps_per_cycle", "FasterRCNN", "split_seed", "al_criterion", "OneCycle"):
        assert word in text


@pytest.mark.parametrize(("verbosity", "lines"), [(0, False), (1, True)])
def test_verbosity(
    config: Path, verbosity: int, lines: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train("-c", config, "--set", f"trainer.verbosity={verbosity}", *SHORT) == 0
    text = capsys.readouterr().out
    assert ("epoch 1/1" in text) is lines
    assert "sens@0.5" in text, "the table is shown always"


@pytest.mark.slow
def test_keep_all_checkpoints_and_no_record(config: Path, tmp_path: Path) -> None:
    line = ["trainer.keep_checkpoints=all", "trainer.keep_records=false"]
    line += ["al_settings.num_cycles=1", "trainer.save_period=2", "trainer.epochs=4"]
    words = [word for setting in line for word in ("--set", setting)]
    assert run_train("-c", config, "--run-id", "x", *words) == 0
    files = files_of(tmp_path / "runs" / "tiny" / "x" / "cycle_00")
    assert {"checkpoint_epoch02.pth", "checkpoint_epoch04.pth"} <= files
    assert "checkpoint_epoch01.pth" not in files
    assert not any(name.startswith("record") for name in files)


def test_two_runs_of_one_id_do_not_mix(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished[0].parents[2] / "config.json"
    before = files_of(finished[0])
    assert run_train("-c", config, "--run-id", "one") == 2
    assert "exists already" in capsys.readouterr().err
    assert files_of(finished[0]) == before


def command(*words: str | Path) -> list[str]:
    return [sys.executable, *map(str, words)]


@pytest.mark.slow
def test_the_scripts_themselves(config: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command(ROOT / "train.py", "-c", config, *SHORT, "--set", "n_workers=1"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "sens@0.5" in done.stdout
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        command(ROOT / "test.py", "-r", tmp_path / "runs" / "latest"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "AP50" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(
    config: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = command(ROOT / "train.py", "-c", config, "--run-id", "x")
    words += ["--set", "trainer.epochs=200", "--set", "n_workers=1", *SUPERVISED]
    run = tmp_path / "runs" / "tiny" / "x"
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        wait_for(run / "cycle_00" / "checkpoint_last.pth.sha256", process)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"go on with: python train.py --resume {run}" in said
    load_checkpoint(run / "cycle_00" / "checkpoint_last.pth")
    assert not (run / "cycle_00" / "training.json").exists()


@pytest.mark.slow
def test_a_signal_behind_the_last_cycle_waits_for_the_end(config: Path, tmp_path: Path) -> None:
    words = command(ROOT / "train.py", "-c", config, "--run-id", "x")
    words += ["--set", "al_settings.num_cycles=0", "--set", "trainer.steps_per_cycle=1"]
    run = tmp_path / "runs" / "tiny" / "x"
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        wait_for(run / "learning_curve.png", process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "report: " in said
    assert (run / "overlays.png").exists() and (run / "report.html").exists()
