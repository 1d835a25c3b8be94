"""Runs that stop and go on: to the bit what an unbroken run gives, and what may change between."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kill_run import stage_of
from same_run import assert_same_run, read
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import cut, files_of, make_voc, quick_config, run_test, run_train, write_config

from med_sslal.base.checkpoint import load_checkpoint, save_checkpoint
from med_sslal.utils.interrupt import Interrupted, StopRequest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    settings = quick_config(make_voc(folder / "voc"), folder / "runs")
    settings["al_settings"]["num_cycles"] = 1
    settings["lr_scheduler"] = {
        "type": "StepLR",
        "args": {"step_size": 2, "gamma": 0.5},
        "interval": "step",
    }
    return write_config(folder / "config.json", settings)


def start(config: Path, name: str, *words: str) -> Path:
    """Run to the end; returns the run folder."""
    assert run_train("-c", config, "--run-id", name, *words) == 0
    return config.parent / "runs" / "tiny" / name


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The unbroken run; tests that change it take a copy."""
    return start(config, "whole")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "runs" / "tiny" / "copy"))


def stop_at(
    patch: pytest.MonkeyPatch, number: int, error: type[Exception] | None, stage: str = ""
) -> None:
    """Stop at the n-th look for a stop, of those in a stage where one is named.

    The stop is what a signal does, or an error that saves nothing.
    """
    count = iter(range(number - 1, -1, -1))

    def check(self: StopRequest) -> None:
        if stage in ("", stage_of(sys._getframe())) and next(count) == 0:
            raise Interrupted(15) if error is None else error("the power is gone")

    patch.setattr(StopRequest, "check", check)


# The looks of this run, in order: cycle 0 has two epochs of one batch and a validation of two
# batches each, a look, for pseudo-labels a validation of 2 and scoring of 2 + 1, a look, the same
# epochs of the student, 2 for the gate, evaluation of 2 + 2 batches, a look, scoring of 2 + 1 and
# of 2 of validation, a look; that makes 32. Cycle 1 has 2 batches an epoch, and 1 + 3 to score.
MID_EPOCH_OF_CYCLE_1 = 54


@pytest.fixture(scope="module")
def stopped(whole: Path, config: Path) -> Path:
    """A run that stopped within the second epoch of cycle 1."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, MID_EPOCH_OF_CYCLE_1, None)
        assert run_train("-c", config, "--run-id", "stopped") == 143
    folder = config.parent / "runs" / "tiny" / "stopped"
    last = load_checkpoint(folder / "cycle_01" / "checkpoint_last.pth")
    assert (last["epoch"], last["batch"]) == (1, 1)
    return folder


def test_a_stopped_run_goes_on_to_the_bit(stopped: Path, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "runs" / "tiny" / "x"))
    assert run_train("--resume", folder) == 0
    assert_same_run(whole, folder)


# A process goes on where the one before it stopped: what has ended has no looks in it any more.
STOPS = {
    "first": {
        "before anything": ("train", 1),
        "scoring": ("score", 2),
        "after the query": ("between", 2),
        "validation of cycle 1": ("train", 7),
    },
    "second": {
        "last validation": ("train", 6),
        "scoring of validation": ("score", 7),
        "mid-epoch of cycle 1": ("train", 6),
        "mid-epoch of its student": ("train", 9),
    },
    "killed": {"scoring": ("score", 2), "mid-epoch of cycle 1": ("train", 12)},
}


@pytest.mark.slow
@pytest.mark.parametrize("stops", STOPS)
def test_stopped_again_and_again(
    whole: Path, config: Path, stops: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A killed run goes on from its last checkpoint, a stopped one from where it was."""
    folder = config.parent / "runs" / "tiny" / stops
    words: list[str | Path] = ["-c", config, "--run-id", stops]
    for stage, number in STOPS[stops].values():
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, number, MemoryError if stops == "killed" else None, stage)
            if stops == "killed":
                with pytest.raises(MemoryError):
                    run_train(*words)
            else:
                assert run_train(*words) == 143
                assert f"--resume {folder}" in capsys.readouterr().out
        words = ["--resume", folder]
    assert not (folder / "cycle_01" / "metrics.json").exists()
    assert run_train("--resume", folder) == 0
    assert_same_run(whole, folder)
    shutil.rmtree(folder)


def test_a_kill_before_the_finds_scores_nothing_again(copy: Path, whole: Path) -> None:
    later = ("finds.json", "selection.json", "selection_detections.json")
    cut(copy, "cycle_01", *(f"cycle_00/{name}" for name in later))
    with pytest.MonkeyPatch.context() as patch:
        # The second look comes after the query: a pass would look before it.
        stop_at(patch, 2, None)
        assert run_train("--resume", copy) == 143
    for name in later:
        assert read(copy / "cycle_00" / name) == read(whole / "cycle_00" / name), name


@pytest.mark.slow
def test_sigterm_at_a_random_moment(whole: Path, config: Path) -> None:
    folder = config.parent / "runs" / "tiny" / "random"
    words = [sys.executable, str(ROOT / "train.py"), "-c", str(config), "--run-id", "random"]
    moments = random.Random(5)
    for _ in range(3):
        with subprocess.Popen(words, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
            while not (folder / "config.json").exists():
                time.sleep(0.05)
            time.sleep(moments.random() * 3)
            process.send_signal(signal.SIGTERM)
            # -15: it came before the run, while torch was loading.
            assert process.wait(timeout=60) in (143, 0, -15)
        words = [sys.executable, str(ROOT / "train.py"), "--resume", str(folder)]
    assert run_train("--resume", folder) == 0
    assert_same_run(whole, folder)


def test_a_finished_run_has_nothing_left_to_do(
    copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.glob("cycle_*/*.pth")}
    assert len(before) == 4 and run_train("--resume", copy) == 0
    said = "".join(capsys.readouterr())
    assert f"nothing was left to do: the run {copy} is finished" in said
    assert f"python -m med_sslal train --resume {copy} --set al_settings.num_cycles=2" in said
    assert f"report: {copy / 'report.html'}" in said
    assert "finished after" not in said and "resuming" not in said
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert_same_run(whole, copy)


@pytest.mark.parametrize("longer", ["", "trainer.epochs=3"])
def test_a_finished_run_keeps_the_settings_that_it_was_trained_with(
    copy: Path, config: Path, longer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, environment = read(copy / "config.json"), (copy / "environment.json").read_bytes()
    root = Path(shutil.copytree(config.parent / "voc", copy.parent / "voc"))
    asked = ["optimizer.args.lr=0.5", "batch_size=3"]
    if longer:
        # Without checkpoints the trainings cannot go on: no longer ones are in this run.
        for path in copy.glob("**/checkpoint_*"):
            path.unlink()
        asked.append(longer)
    code, said = resume_with(copy, capsys, *asked, f"dataset.args.root={root}")
    assert code == 0
    why = " (cycle_01 cannot go on: trainer.keep_checkpoints left nothing that it could go on from)"
    told = f"warning: nothing is left to train{why if longer else ''}, so the run keeps"
    assert said.count("warning: ") == 1 and told in said
    assert "optimizer.args.lr stays 0.02, not 0.5" in said and "batch_size stays 4, not 3" in said
    assert ("trainer.epochs stays 2, not 3" in said) == bool(longer)
    assert "nothing was left to do" in said
    # Where the data is now it must be looked for from now on.
    before["dataset"]["args"]["root"], before["trainer"]["verbosity"] = str(root), 2
    assert read(copy / "config.json") == before
    assert (copy / "environment.json").read_bytes() == environment


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=4"], ["seed was 3 and cannot become 4"]),
        (
            ['al_settings.args.al_criterion=["entropy"]'],
            ["al_settings.args.al_criterion was", "cannot become ['entropy']"],
        ),
        (["al_settings.args.budget_num=4"], ["budget_num was 5 and cannot become 4"]),
        (["al_settings.args.init_num=5"], ["init_num was 4"]),
        (["dataset.args.eval_split=0.4"], ["eval_split was 0.5"]),
        (["arch.args.backbone_name=resnet18"], ["backbone_name was 'small'"]),
        (["trainer.epochs=1"], ["trainer.epochs was 2 and cannot become 1"]),
        (["al_settings.num_cycles=0"], ["num_cycles was 1 and cannot become 0"]),
        (["seed=4", "trainer.epochs=1"], ["seed was 3", "trainer.epochs was 2"]),
    ],
    ids=str,
)
def test_a_change_that_makes_the_curve_no_result_is_refused(
    whole: Path, settings: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (whole / name).stat().st_mtime_ns for name in files_of(whole)}
    line = [word for setting in settings for word in ("--set", setting)]
    assert run_train("--resume", whole, *line) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and "Traceback" not in error
    assert before == {name: (whole / name).stat().st_mtime_ns for name in files_of(whole)}


def resume_with(
    folder: Path, capsys: pytest.CaptureFixture[str], *settings: str
) -> tuple[int, str]:
    """Exit code and words of a resume with `--set` for each setting, at full verbosity."""
    line = [word for setting in (*settings, "trainer.verbosity=2") for word in ("--set", setting)]
    capsys.readouterr()
    code = run_train("--resume", folder, *line)
    found = capsys.readouterr()
    return code, found.out + found.err


@pytest.mark.slow
def test_more_cycles_go_on_with_the_same_run(
    copy: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = resume_with(copy, capsys, "al_settings.num_cycles=2", "trainer.save_period=7")
    assert code == 0
    assert "al_settings.num_cycles: 1 -> 2" in said and "warning: al_settings" not in said
    line = ["--set", "al_settings.num_cycles=2", "--set", "trainer.save_period=7"]
    longer = start(config, "longer", *line)
    assert read(copy / "summary.json") == read(longer / "summary.json")
    assert len(read(copy / "summary.json")["cycles"]) == 3
    saved = json.loads((copy / "config.json").read_text())
    assert saved["al_settings"]["num_cycles"] == 2


@pytest.mark.slow
def test_more_epochs_continue_a_training_whose_query_is_not_made(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = load_checkpoint(copy / "cycle_01" / "supervised" / "checkpoint_last.pth")
    first = (copy / "cycle_00" / "training.json").read_bytes()
    seen = copy / "cycle_01" / "supervised" / "predictions_val.json"
    seen_before = seen.read_bytes()
    code, said = resume_with(copy, capsys, "trainer.epochs=3")
    assert code == 0
    assert "cycle_01: the training of 2 epochs goes on to 3 epochs" in said
    assert "cycle_00 keeps its training of 2 epochs" in said
    new = load_checkpoint(copy / "cycle_01" / "supervised" / "checkpoint_last.pth")
    assert (old["epoch"], new["epoch"]) == (2, 3) and new["history"][:2] == old["history"]
    # The gate and the thresholds are of the model as it is now.
    assert seen.read_bytes() != seen_before
    assert (copy / "cycle_00" / "training.json").read_bytes() == first
    rows = read(copy / "summary.json")["cycles"]
    assert rows[1]["steps"] == read(copy / "cycle_01" / "training.json")["steps"] == 6
    # And a run that was stopped in that continuation, or not changed any more, stays as it is.
    code, said = resume_with(copy, capsys)
    assert code == 0 and "goes on to" not in said


def test_a_new_learning_rate_is_warned_of_and_used(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = resume_with(copy, capsys, "trainer.epochs=3", "optimizer.args.lr=0.04")
    assert code == 0
    assert "warning: optimizer.args.lr: 0.02 -> 0.04; the run is no longer of one piece" in said
    steps = 6
    last = load_checkpoint(copy / "cycle_01" / "checkpoint_last.pth")
    assert last["history"][-1]["lr"] == pytest.approx(0.04 * 0.5 ** (steps // 2))
    assert last["state"]["optimisation"]["base_lrs"] == [0.04]


WARNED = {
    "batch_size=3": "batch_size: 4 -> 3",
    "augmentation.args.rotation=5.0": "augmentation.args.rotation: 0 -> 5.0",
    "ssl_settings.args.threshold=0.5": "ssl_settings.args.threshold: 0.05 -> 0.5",
    "trainer.precision=bf16": "trainer.precision: 'fp32' -> 'bf16'",
}


def test_warned_changes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(copy, "cycle_01/metrics.json")
    code, said = resume_with(copy, capsys, *WARNED)
    assert code == 0
    assert [text for text in WARNED.values() if f"warning: {text}" not in said] == []


def test_another_environment_is_warned_of(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "environment.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "threads": 99}))
    cut(copy, "cycle_01/metrics.json")
    code, said = resume_with(copy, capsys)
    assert code == 0 and "warning: threads was 99 and is now 1" in said


@pytest.mark.slow
def test_a_config_of_an_older_version_lacks_keys(copy: Path, whole: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    del content["trainer"]["grad_clip"], content["trainer"]["warmup_steps"]
    del content["pseudo_augmentation"], content["al_settings"]["args"]["restart"]
    content["trainer"]["grad_clip"] = 5.0
    content["arch"]["args"] |= {"min_size": None, "max_size": None, "roi_features": False}
    (copy / "config.json").write_text(json.dumps(content))
    cut(copy, "cycle_01")
    assert run_train("--resume", copy) == 0
    assert_same_run(whole, copy)
    assert read(copy / "config.json") == read(whole / "config.json")


def test_a_run_of_an_older_program_does_not_go_on(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of its batches was pseudo-labelled: its curve would be of two kinds."""
    path = copy / "initial.pth"
    save_checkpoint(path, {**load_checkpoint(path), "format_version": 1})
    assert run_train("--resume", copy) == 2
    said = capsys.readouterr().err
    assert f"{path} is of an older program (format_version 1, now 2)" in said
    line = ("-c", copy.parent / "x.json", "--cycle0-from", copy)
    write_config(line[1], json.loads((copy / "config.json").read_text()))
    assert run_train(*line) == 2
    assert "is of an older program" in capsys.readouterr().err
    assert run_test("-r", copy) == 0, "it can be tested"


def test_pseudo_labels_of_the_cycle_before_do_not_go_on(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((copy / "config.json").read_text())
    del content["ssl_settings"]["gate"]
    (copy / "config.json").write_text(json.dumps(content))
    assert run_train("--resume", copy) == 2
    assert "is of an older program, which trained each cycle on" in capsys.readouterr().err


def test_a_checkpoint_may_be_named(copy: Path, whole: Path) -> None:
    cut(copy, "cycle_01/metrics.json", "cycle_01/training.json")
    assert run_train("--resume", copy / "cycle_01" / "checkpoint_last.pth") == 0
    assert_same_run(whole, copy)


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": flip_bit,
    "truncated": lambda content: content[:1000],
    "empty": lambda content: b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_folder_falls_back_and_a_named_checkpoint_does_not(
    stopped: Path,
    whole: Path,
    tmp_path: Path,
    damage: Callable[[bytes], bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "runs" / "tiny" / "x"))
    path = folder / "cycle_01" / "checkpoint_last.pth"
    path.write_bytes(damage(path.read_bytes()))
    assert run_train("--resume", path) == 2
    error = capsys.readouterr().err
    assert "checkpoint_last.pth is damaged" in error and error.count("\n") == 1
    assert run_train("--resume", folder) == 0
    assert "checkpoint_last.pth is damaged" in capsys.readouterr().out
    assert_same_run(whole, folder)


def test_when_no_checkpoint_is_good(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(stopped, tmp_path / "runs" / "tiny" / "x"))
    for path in (folder / "cycle_01").glob("checkpoint*.pth"):
        path.write_bytes(b"")
    assert run_train("--resume", folder) == 2
    assert "no usable checkpoint" in capsys.readouterr().err


def test_other_data_are_refused(
    whole: Path, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(config.parent / "voc", tmp_path / "voc"))
    line = ["--resume", whole, "--set", f"dataset.args.root={other}"]
    assert run_train(*line, "--print-config") == 0
    pool = json.loads((whole / "cycle_01" / "pool.json").read_text())

    def change(image_id: str) -> None:
        path = other / "Annotations" / f"{image_id}.xml"
        before, text = path.read_text().split("</xmax>", 1)
        path.write_text(f"{before[:-1]}{(int(before[-1]) + 1) % 10}</xmax>{text}")

    path = other / "Annotations" / f"{pool['labelled'][0]}.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>0"))
    assert run_train(*line) == 0, "the same numbers at another place are the same data"
    change(pool["unlabelled"][0])
    assert run_train(*line) == 0, "a label that the run has never seen"
    capsys.readouterr()
    change(pool["labelled"][-1])
    assert run_train(*line) == 2
    assert "labels of images that it has used have changed" in capsys.readouterr().err
    (other / "Annotations" / f"{pool['unlabelled'][0]}.xml").unlink()
    assert run_train(*line) == 2
    assert "its images or their split have changed" in capsys.readouterr().err


def test_a_checkpoint_that_the_run_has_passed(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / "cycle_01" / "checkpoint_epoch01.pth"
    assert run_train("--resume", path) == 2
    assert "the run has gone on past" in capsys.readouterr().err
    assert run_train("--resume", stopped / "cycle_01" / "model_best.pth") == 2
    assert "no training state" in capsys.readouterr().err
    alone = Path(shutil.copytree(stopped / "cycle_01", tmp_path / "a" / "b"))
    assert run_train("--resume", alone / "checkpoint_last.pth") == 2
    assert "lies in no run folder" in capsys.readouterr().err


def test_a_numbered_checkpoint_that_was_saved_twice(stopped: Path, tmp_path: Path) -> None:
    # What a resume from before a numbered checkpoint leaves: it is saved again over the old one.
    folder = Path(shutil.copytree(stopped, tmp_path / "runs" / "tiny" / "twice"))
    for path in (folder / "cycle_01").glob("checkpoint_epoch01.pth*"):
        shutil.copy(path, path.with_name(path.name.replace("01.pth", "01_previous.pth")))
    assert run_train("--resume", folder) == 0
    assert not [name for name in files_of(folder) if "epoch" in name or "previous" in name]


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["checkpoint_epoch01.pth", "nothing"])
def test_tensorboard_shows_no_step_twice(
    config: Path, kept: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config.parent / "runs" / "tiny" / f"board_{kept}"
    line = ["--set", "trainer.tensorboard=true", "--set", "al_settings.num_cycles=0"]
    line += ["--set", "ssl_settings.include_pseudolabels=false"]
    with pytest.MonkeyPatch.context() as patch:
        # Killed in epoch 3, with the checkpoint of epoch 1 as the newest, or none.
        stop_at(patch, 7, MemoryError)
        with pytest.raises(MemoryError):
            run_train("-c", config, "--run-id", folder.name, "--set", "trainer.epochs=4", *line)
    for path in (folder / "cycle_00").glob("checkpoint_*.pth"):
        if path.name != kept:
            path.unlink()
    assert run_train("--resume", folder, "--set", "trainer.verbosity=2") == 0
    restored = "restored from checkpoint_epoch01.pth: 1 epochs" in capsys.readouterr().out
    assert restored == (kept != "nothing")
    board = EventAccumulator(str(folder / "tensorboard" / "cycle_00"))
    board.Reload()
    assert len(list((folder / "tensorboard" / "cycle_00").iterdir())) == 2
    assert [event.step for event in board.Scalars("val_loss")] == [1, 2, 3, 4]
    history = read(folder / "cycle_00" / "training.json")["history"]
    shown = [event.value for event in board.Scalars("loss")]
    assert shown == pytest.approx([epoch["loss"] for epoch in history])
