"""Studies: what makes one unfair or wrong, and a small one from start to report."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import files_of, make_voc, quick_config, write_config

from med_sslal.__main__ import main
from med_sslal.cli.registries import registries
from med_sslal.study.study_config import StudyConfig
from med_sslal.study.study_runs import StudyRuns

ROOT = Path(__file__).parents[1]


def make_study(folder: Path) -> dict[str, Any]:
    """Write a data set and a run config into `folder`; returns a right study over them."""
    config = quick_config(make_voc(folder / "voc"), folder / "elsewhere")
    config["al_settings"]["num_cycles"] = 1
    config["trainer"] |= {"steps_per_cycle": 2, "monitor": "off"}
    write_config(folder / "run.json", config)
    return {
        "name": "tiny_study",
        "config": "run.json",
        "set": {
            "ssl_settings.include_pseudolabels": False,
            "trainer.keep_checkpoints": "best",
        },
        "seeds": [0, 1],
        "metrics": ["test_sens_mean"],
        "save_dir": str(folder / "results"),
        "arms": {
            "random": {"al_settings.args.al_criterion": ["random"]},
            "entropy": {"al_settings.args.al_criterion": ["entropy"]},
            "full": {"al_settings.args.init_num": "all", "al_settings.num_cycles": 0},
        },
    }


def study_command(folder: Path, study: dict[str, Any], *words: str) -> int:
    """`python -m med_sslal study -c ...` in this process."""
    path = folder / "study.json"
    path.write_text(json.dumps(study, indent=2))
    return main(["study", "-c", str(path), "--device", "cpu", *words])


def refused(
    folder: Path, study: dict[str, Any], capsys: pytest.CaptureFixture[str], *words: str
) -> list[str]:
    """The lines of the error; nothing but the study file itself is left behind."""
    (folder / "study.json").write_text("")
    before = set(files_of(folder))
    capsys.readouterr()
    assert study_command(folder, study, *words) == 2
    assert set(files_of(folder)) == before
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text.removeprefix("error: ").splitlines()


def changed(study: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The study with other top-level keys."""
    return {**study, **changes}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"seed": [0]}, "seed: unknown key. Did you mean 'seeds' (required)?"),
        ({"seeds": []}, "seeds: found the list []; allowed: list of (integer), 1 or more of them"),
        ({"seeds": [1, 1]}, "seeds: found [1, 1]; allowed: different numbers from 0 on"),
        ({"seeds": "5"}, "seeds: found"),
        ({"ceiling_seeds": [1, 2]}, "ceiling_seeds: found [1, 2]; allowed: some of seeds, [0, 1]"),
        ({"metric": "test_AP"}, "metric: unknown key. Did you mean 'metrics'"),
        ({"baseline": "random"}, "baseline: unknown key. Did you mean 'baselines'"),
        ({"metrics": []}, "metrics: found the list []"),
        ({"metrics": ["test_AP", "test_AP"]}, "allowed: different names"),
        (
            {"baselines": ["random", "chance"]},
            "baselines: there is no arm 'chance'; there",
        ),
        (
            {"baselines": ["full"]},
            "baselines: 'full' labels everything (init_num all)",
        ),
        ({"name": "../up"}, "name: found"),
        (
            {"metrics": ["test_AP", "test_sens"]},
            "metrics: no value 'test_sens'; there are test_AP",
        ),
        ({"set": {"trainer.steps_per_cycle": None}}, "trainer.steps_per_cycle is null"),
        ({"set": {"trainer.early_stop": 3, "trainer.monitor": "min val_loss"}}, "early_stop"),
        ({"set": {"oracle.type": "human"}}, 'oracle.type "human" waits for a person'),
        ({"set": {"trainer.epoch": 3}}, "set trainer.epoch: unknown key. Did you mean 'epochs'"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_study_is_told(
    changes: dict[str, Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = refused(tmp_path, changed(make_study(tmp_path), **changes), capsys)
    assert len(lines) == 1
    assert text in lines[0]


@pytest.mark.parametrize(
    ("arm", "text"),
    [
        ({"optimizer.args.lr": 0.1}, "optimizer.args.lr is no part of the strategy"),
        ({"trainer.steps_per_cycle": 9}, "trainer.steps_per_cycle is no part of the strategy"),
        ({"al_settings.args.init_num": 5}, "init_num must be the same in all arms"),
        ({"al_settings.args.restart": "continue"}, "restart must be the same in all arms"),
        ({"al_settings.args.al_criterion": ["entropi"]}, "Did you mean 'entropy'?"),
        ({"al_settings.args.init_num": "all", "al_settings.num_cycles": 0}, "keep one"),
    ],
    ids=["another rate", "longer", "another initial set", "no restart", "misspelt", "two ceilings"],
)
def test_an_unfair_or_wrong_arm_is_told(
    arm: dict[str, Any], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    study["arms"]["odd"] = arm
    lines = refused(tmp_path, study, capsys)
    assert any(text in line for line in lines)


def test_an_initial_set_is_that_of_the_cycle_that_arms_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    for arm in ("random", "entropy"):
        study["arms"][arm]["al_settings.args.init_num"] = 5
    (line,) = refused(tmp_path, study, capsys)
    assert "init_num must be the same in all arms, found random 5, entropy 5, 'set' 4" in line


def test_seeds_of_a_ceiling_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path) | {"ceiling_seeds": [1]}
    del study["arms"]["full"]
    (line,) = refused(tmp_path, study, capsys)
    assert "ceiling_seeds: no arm labels everything (init_num all)" in line


def test_arms_begin_with_the_training_that_they_have_in_common(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = {"ssl_settings.include_pseudolabels": True}
    study = make_study(tmp_path) | {"seeds": [0], "baselines": ["random", "longer"]}
    study["arms"] |= {
        "longer": {"trainer.steps_per_cycle": 5},
        "weight": {"ssl_settings.weight": 0.1},
        "student": on,
        "oracle": {**on, "ssl_settings.oracle": True},
        "online": {**on, "ssl_settings.mode": "mean_teacher"},
        "no_tail": {**on, "ssl_settings.tail": 0.0},
    }
    assert study_command(tmp_path, study, "--print-commands") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[-1] for words in lines] == [f"{arm}/s0" for arm in ("cycle0", *study["arms"])]
    runs = StudyRuns(StudyConfig.from_file(tmp_path / "study.json", registries()))
    waiting = [job.arm for job in runs.jobs if runs.waits_for(job)]
    # A weight of nothing changes nothing; students have one supervised model but for its tail.
    assert waiting == ["random", "entropy", "weight", "student", "oracle", "online"]
    # Pseudo-labels in all arms are one training of cycle 0, with one student.
    study["set"] |= on
    del study["arms"]["longer"], study["arms"]["weight"]
    (tmp_path / "study.json").write_text(json.dumps(study | {"baselines": ["random"]}))
    runs = StudyRuns(StudyConfig.from_file(tmp_path / "study.json", registries()))
    waiting = [job.arm for job in runs.jobs if runs.waits_for(job)]
    assert waiting == ["random", "entropy", "student"]


def test_all_problems_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = changed(make_study(tmp_path), seeds=[-1], baselines=["chance"])
    study["arms"]["configs"] = {"trainer.epochs": 3}
    lines = refused(tmp_path, study, capsys)
    assert len(lines) == 4
    assert "'configs' cannot name an arm" in lines[0]


def test_missing_and_malformed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "-c", str(tmp_path / "no.json")]) == 2
    assert "cannot read the study" in capsys.readouterr().err
    (tmp_path / "list.json").write_text("[]")
    assert main(["study", "-c", str(tmp_path / "list.json")]) == 2
    assert "list.json:1:1 a study is an object" in capsys.readouterr().err
    study = make_study(tmp_path)
    del study["arms"]
    (line,) = refused(tmp_path, study, capsys)
    assert "arms: required key is missing" in line


def test_commands_for_a_job_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(tmp_path)
    assert study_command(tmp_path, study, "--print-commands", "--set", "seed=1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:3]] == ["cycle0/s0", "random/s0", "entropy/s0"]
    assert [line.split()[-1] for line in lines[4:6]] == ["cycle0/s1", "random/s1"]
    assert len(lines) == 2 + 2 * 3
    assert all(line.startswith("python -m med_sslal study -c ") for line in lines)
    assert all("--device cpu --set seed=1 --only" in line for line in lines)
    assert not (tmp_path / "results").exists()


def test_gpus_are_handed_out_one_to_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    assert study_command(tmp_path, study, "--print-commands", "--device", "2,3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all("--device 2 --only" in line for line in lines[::2])
    assert all("--device 3 --only" in line for line in lines[1::2])
    assert len(lines) == 8


@pytest.mark.skipif(torch.cuda.device_count() > 2, reason="asks for GPUs that are not there")
@pytest.mark.parametrize(
    ("words", "device"),
    [(["--only", "entropy/s0"], "2"), (["--only", "random/s0"], "3"), ([], "3")],
    ids=["even", "odd", "all"],
)
def test_one_run_alone_gets_one_gpu(
    words: list[str], device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    # In the order cycle0/s0, random/s0, entropy/s0, full/s0, ... every second has the second GPU.
    (line,) = refused(tmp_path, study, capsys, "--device", "2,3", *words)
    assert line.startswith(f"--device {device}: no such GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
def test_settings_are_tried_on_the_device_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    on_gpu = ["--device", "cuda", "--set", "trainer.precision=fp16"]
    (line,) = refused(tmp_path, study, capsys, *on_gpu)
    assert line.startswith("1 GPU(s) asked for, 0 found")
    (line,) = refused(tmp_path, study, capsys, *on_gpu[2:])
    assert "fp16 needs a GPU" in line


def test_a_failed_run_is_named_without_a_list_of_cores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert study_command(tmp_path, make_study(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "cycle0/s0 failed" in error and "cycle0/s1 failed" in error
    assert "4 runs that wait for them were not started" in error


@pytest.mark.parametrize("name", ["study_phantom", "study_bccd", "study_brain_mri_patients"])
def test_the_studies_of_all_sets_hold_the_same_strategies_against_random(name: str) -> None:
    study = StudyConfig.from_file(ROOT / "configs" / f"{name}.json", registries())
    patients = StudyConfig.from_file(ROOT / "configs/study_brain_mri_patients.json", registries())
    assert study.baselines == ("random", "foreground_random")
    assert (study.full, len(study.ceiling_seeds)) == ("full", 3)
    assert len(study.seeds) >= 5
    assert set(study.arms) | {"random_patients"} == set(patients.arms)
    for arm, own in study.arms.items():
        criterion = "al_settings.args.al_criterion"
        assert own.get(criterion) == patients.arms[arm].get(criterion)
        assert own.get("trainer.precision") == "fp32"
    lengths = {arm: own.get("trainer.steps_per_cycle") for arm, own in study.arms.items()}
    assert {lengths.pop("full")} == {4 * length for length in lengths.values()}


def test_the_study_on_brain_mri_holds_every_strategy_against_both_baselines() -> None:
    study = StudyConfig.from_file(ROOT / "configs/study_brain_mri.json", registries())
    assert study.baselines == ("random", "foreground_random")
    for config in study.arms.values():
        assert config["trainer"]["precision"] == "fp32"
        assert config["trainer"]["steps_per_cycle"] == config.get("lr_scheduler.args.total_steps")
