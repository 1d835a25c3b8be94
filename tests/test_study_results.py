"""The results file of a study: what counts as the same run, and going on without run folders."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import Page
from test_study import make_study, study_command
from tiny import run_train

from med_sslal.cli.registries import registries
from med_sslal.config.overrides import Override
from med_sslal.config.parse_config import ConfigParser
from med_sslal.study.results_file import Outcome, ResultsFile
from med_sslal.study.settings_hash import decisive, settings_hash
from med_sslal.study.study_config import StudyConfig
from med_sslal.trainer.run_folder import SUMMARY_VERSION

MACHINE = {"commit": None, "torch": "2.0", "cpu": "A", "cpu_capability": "AVX2", "gpu": None}


def hash_of(folder: Path, **changes: Any) -> str:
    """Of the run config of `make_study` with other keys; dots are two underscores."""
    overrides = [Override("test", tuple(key.split("__")), value) for key, value in changes.items()]
    config = ConfigParser.from_file(folder / "run.json", registries(), overrides)
    return settings_hash(decisive(config))


def test_a_hash_is_of_what_decides_the_numbers(tmp_path: Path) -> None:
    make_study(tmp_path)
    for name in ("a/one.pth", "a/two.pth", "b/one.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    plain = hash_of(tmp_path)
    same: list[dict[str, Any]] = [
        {"name": "other", "n_gpu": "auto", "n_workers": 7},
        {"dataset__args__root": "/elsewhere/voc"},
        {"trainer__save_dir": "/elsewhere", "trainer__keep_records": 5},
        {"optimizer__args__lr": 0.02, "augmentation__args__rotation": 0.0},
        {"trainer__precision": "fp32", "al_settings__args__candidate_factor": "auto"},
    ]
    assert {hash_of(tmp_path, **changes) for changes in same} == {plain}
    other: list[dict[str, Any]] = [
        {"seed": 4},
        {"trainer__steps_per_cycle": 3},
        {"optimizer__args__lr": 0.03},
        {"optimizer__type": "AdamW", "optimizer__args": {"lr": 0.02}},
        {"al_settings__args__al_criterion": ["entropy"]},
        {"al_settings__args__init_num": 5},
        {"dataset__args__eval_split": 0.4},
        {"trainer__val_steps": 3},
        {"arch__args__pretrained": str(tmp_path / "a/one.pth")},
        {"arch__args__pretrained": str(tmp_path / "a/two.pth")},
    ]
    assert len({plain, *(hash_of(tmp_path, **changes) for changes in other)}) == len(other) + 1
    here, there = (
        hash_of(tmp_path, arch__args__pretrained=str(tmp_path / folder / "one.pth"))
        for folder in "ab"
    )
    assert here == there


def fill(path: Path, study: StudyConfig, cpus: dict[int, str] | None = None) -> ResultsFile:
    """A results file of all arms and seeds; entropy is ahead by 0.1 in all but the last seed."""
    file = ResultsFile(path)
    for arm, seed in study.runs:
        n = 1 if arm == study.full else 2
        ahead = 0.1 if arm == "entropy" and seed != study.seeds[-1] else 0.0
        rows = [
            {
                "cycle": i,
                "labelled_images": 12 if arm == study.full else 4 + 5 * i,
                "labelled_boxes": 12 if arm == study.full else 4 + 5 * i,
                "test_sens_mean": 0.4 + (0.2 + ahead) * i + 0.01 * seed,
                "test_AP75": 0.3 - ahead * i,
            }
            for i in range(n)
        ]
        cycles = [{"query": ["a", "b"], "seconds": {"train": 1.5}}] * n
        machine = MACHINE | {"cpu": (cpus or {}).get(seed, "A") if arm == "random" else "A"}
        settings = decisive(study.run_config(arm, seed))
        file.add(arm, seed, Outcome(settings_hash(settings), machine, rows, cycles, settings))
    return file


def study_of(folder: Path, **changes: Any) -> tuple[dict[str, Any], StudyConfig]:
    """A study of two metrics and two baselines, as its file and checked."""
    study = make_study(folder) | {
        "seeds": [0, 1, 2],
        "metrics": ["test_sens_mean", "test_AP75"],
        "baselines": ["random", "margin"],
        **changes,
    }
    study["arms"]["margin"] = {"al_settings.args.al_criterion": ["margin"]}
    (folder / "study.json").write_text(json.dumps(study))
    return study, StudyConfig.from_file(folder / "study.json", registries())


def test_a_file_alone_gives_comparison_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    content, study = study_of(tmp_path)
    file = fill(tmp_path / "kept.json", study, cpus={1: "B"})
    foreign = Outcome("0", MACHINE, [{"cycle": 0, "x": 1}], [{}])
    file.add("of_another_study", 9, foreign)
    before = (tmp_path / "kept.json").read_bytes()
    assert study_command(tmp_path, content, "--results", str(tmp_path / "kept.json")) == 0
    assert (tmp_path / "kept.json").read_bytes() == before
    out = capsys.readouterr().out
    assert "test_AP75 against margin" in out
    folder = tmp_path / "results" / "tiny_study"
    families = json.loads((folder / "results.json").read_text())["families"]
    pairs = [(one["metric"], one["baseline"]) for one in families]
    assert pairs == [(m, b) for m in study.metrics for b in study.baselines]
    # Areas: half of the last cycle's 0.1 in two of three seeds.
    ahead = [one["images"]["arms"]["entropy"]["comparison"]["area"]["value"] for one in families]
    assert ahead == [pytest.approx(sign * 0.1 / 3) for sign in (1, 1, -1, -1)]
    assert all(one["images"]["matrix"]["entropy"]["random"][1] == 1 for one in families)
    mixed = "seed 1 were made on 2 kinds of processor"
    assert mixed in caplog.text
    page = Page(folder / "report.html")
    assert mixed in page.text and "runs have ended" not in page.text
    for family in families:
        section = "" if family["metric"] == "test_sens_mean" else "images"
        assert all(sentence in page.texts[section] for sentence in family["verdict"])
    # For each metric one table, in it a line for each baseline.
    assert len(page.tables["images"]) == len(page.tables["boxes"]) == 2
    lines = [line[:3] for line in page.tables["images"][1][1:]]
    assert [line[0] for line in lines] == ["random", "entropy", "", "margin"]
    assert [line[2] for line in lines] == ["margin", "random", "margin", "random"]
    assert page.tables["runs"][0][1] == ["random", "0.600", "0.610", "0.620"]


def test_a_ceiling_may_have_fewer_seeds_and_longer_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, _ = study_of(tmp_path)
    content["arms"]["full"]["trainer.steps_per_cycle"] = 8
    content["ceiling_seeds"] = [1]
    (tmp_path / "study.json").write_text(json.dumps(content))
    study = StudyConfig.from_file(tmp_path / "study.json", registries())
    assert study_command(tmp_path, content, "--print-commands") == 0
    names = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert [name for name in names if name.startswith("full")] == ["full/s1"]
    arms = ("cycle0", "random", "entropy", "full", "margin")
    assert names[4:9] == [f"{arm}/s1" for arm in arms]
    file = fill(tmp_path / "kept.json", study)
    assert study_command(tmp_path, content, "--results", str(file.path)) == 0
    folder = tmp_path / "results" / "tiny_study"
    for family in json.loads((folder / "results.json").read_text())["families"]:
        assert family["images"]["full"].keys() == {"1"}
        arms = family["images"]["arms"]
        assert arms["entropy"]["seeds"] == [0, 1, 2]
        assert arms["entropy"]["goals"][0]["per_seed"].keys() == {"1"}
    page = Page(folder / "report.html")
    assert "runs have ended" not in page.text
    assert page.tables["runs"][0][3] == ["full", "\N{EN DASH}", "0.410", "\N{EN DASH}"]
    assert "3 seeds: 0, 1, 2" in page.text and "3 of them compared" in page.text
    # What lacks a ceiling is compared without it, what lacks an arm is not.
    part = ResultsFile(tmp_path / "part.json")
    for job, outcome in file.outcomes.items():
        if job not in (("full", 1), ("margin", 2)):
            part.add(*job, outcome)
    shutil.rmtree(folder)
    words = ["--results", str(part.path), "--seeds", "0"]
    assert study_command(tmp_path, content, *words) == 0
    for family in json.loads((folder / "results.json").read_text())["families"]:
        assert family["images"]["full"] is None
        assert family["images"]["arms"]["random"]["seeds"] == [0, 1]
    page = Page(folder / "report.html")
    assert "8 of 10 runs have ended" in page.text and "2 of them compared: 0, 1" in page.text


def test_what_a_file_holds_comes_back_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    first, second = ResultsFile(path), ResultsFile(path)
    one = Outcome("1", MACHINE, [{"cycle": 0, "é": None, "b": 0.5}], [{"finds": {"x": [1]}}])
    first.add("b", 1, one)
    second.add("a", 10, one)
    second.add("a", 2, one)
    assert ResultsFile(path).outcomes == {("a", 2): one, ("a", 10): one, ("b", 1): one}
    lines = path.read_text().splitlines()
    assert [line for line in lines if '"row"' in line] == [
        '   {"row": [0, null, 0.5], "finds": {"x": [1]}}'
    ] * 3
    assert [json.loads(line[:-13] + "}")["seed"] for line in lines if '"arm"' in line] == [2, 10, 1]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "kept.json is not valid JSON"),
        ("[]", "kept.json is no such file of this program"),
        ('{"format_version": 1, "families": []}', "kept.json is no file of a study's results"),
        ('{"format_version": 7, "runs": []}', "format_version 7"),
        ('{"format_version": 1, "runs": [{"arm": "a"}]}', "kept.json is no file of a study's"),
        ('{"format_version": 1, "runs": 3}', "kept.json is no file of a study's results"),
    ],
)
def test_a_foreign_file_is_refused(
    content: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study(tmp_path)
    path = tmp_path / "kept.json"
    path.write_text(content)
    assert study_command(tmp_path, study, "--results", str(path), "--print-commands") == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1
    assert path.read_text() == content


def test_other_settings_and_seeds_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, study = study_of(tmp_path)
    path = tmp_path / "kept.json"
    fill(path, study)
    words = ["--results", str(path), "--print-commands"]
    assert study_command(tmp_path, content, *words) == 0
    assert capsys.readouterr().out == ""
    assert study_command(tmp_path, content, *words, "--set", "batch_size=2") == 2
    told = "(batch_size its default there, 2 here): give the study another results file"
    error = capsys.readouterr().err
    assert f"{path} has random/s0 of other settings than the study's {told}" in error
    # As a study whose config says true to the weights that a listed run had from a file.
    weights = tmp_path / "imagenet.pth"
    weights.touch()
    own = ["--set", f"arch.args.pretrained={weights}"]
    assert study_command(tmp_path, content, *words, *own) == 2
    assert "(arch.args.pretrained its default there, 'imagenet.pth' here)" in (
        capsys.readouterr().err
    )
    # Files of before do not hold settings.
    file, job = ResultsFile(tmp_path / "old.json"), study.runs[0]
    file.add(*job, replace(ResultsFile(path).outcomes[job], settings=None))
    assert study_command(tmp_path, content, "--results", str(file.path), *words[2:], *own) == 2
    assert "(the file does not say in which keys)" in capsys.readouterr().err
    assert study_command(tmp_path, content, "--print-commands", "--seeds", "2,5") == 2
    assert "--seeds: the study has no seed 5" in capsys.readouterr().err
    gone = str(tmp_path / "no" / "kept.json")
    assert study_command(tmp_path, content, "--results", gone, "--print-commands") == 2
    assert "there is no folder" in capsys.readouterr().err
    # A study that grows: what is listed is done, and cycle 0 comes only where an arm needs it.
    content["seeds"] = [0, 1, 2, 3]
    content["arms"]["late"] = {"al_settings.args.al_criterion": ["unexplained_objectness"]}
    assert study_command(tmp_path, content, *words, "--seeds", "1,3") == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(f"--results {path} --seeds 1,3" in line for line in lines)
    arms = ("cycle0", "random", "entropy", "full", "margin", "late")
    names = ["cycle0/s1", "late/s1", *(f"{arm}/s3" for arm in arms)]
    assert [line.split()[-1] for line in lines] == names


@pytest.mark.parametrize("key", ["trainer.steps_per_cycle", "al_settings.num_cycles"])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_on_disk_of_other_settings_is_refused_before_anything_starts(
    key: str, finished: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that could go on: its first cycles would stay those of a shorter training."""
    content, study = study_of(tmp_path)
    job = study.runs[-1]
    run = study.folder / job[0] / f"s{job[1]}"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(study.run_config(*job).resolved))
    if finished:
        summary = {"format_version": SUMMARY_VERSION, "finished": True, "cycles": []}
        (run / "summary.json").write_text(json.dumps(summary))
    assert study_command(tmp_path, content, "--print-commands") == 0
    assert (f"--only {job[0]}/s{job[1]}" in capsys.readouterr().out) is not finished
    now = study.run_config(*job).get(key) + 1
    assert study_command(tmp_path, content, "--set", f"{key}={now}", "--print-commands") == 2
    error = capsys.readouterr().err
    assert f"was run with {key} {now - 1}, the study now says {now}: give the study" in error
    # What a results file has like it needs no folder, and is not held against one.
    kept = fill(tmp_path / "kept.json", study).path
    assert study_command(tmp_path, content, "--print-commands", "--results", str(kept)) == 0


def test_a_run_of_a_study_keeps_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Longer by hand, its first cycles would stay short, and the study take it for a longer one."""
    _, study = study_of(tmp_path)
    run = study.folder / "random" / "s0"
    run.mkdir(parents=True)
    # As the study writes them when it starts a run.
    for path in (run / "config.json", study.folder / "configs" / "random_s0.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(study.run_config("random", 0).resolved))
    longer = ["--set", "trainer.steps_per_cycle=9"]
    assert run_train("--resume", run, *longer, "--set", "n_workers=1") == 2
    error = capsys.readouterr().err
    assert f"{run} is a run of the study {study.folder}, whose runs are all of the" in error
    assert ": trainer.steps_per_cycle cannot change in it" in error and error.count("\n") == 1


def test_arms_of_a_seed_that_begin_with_different_models_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, study = study_of(tmp_path)
    file = fill(tmp_path / "kept.json", study)
    other = file.outcomes["margin", 1]
    other.rows[0]["test_AP75"] += 0.01
    file.add("margin", 1, other)
    # One that is nobody's any more: arms have its numbers.
    file.add("cycle0", 2, Outcome("0", MACHINE | {"cpu": "B"}, other.rows[:1], [{}]))
    assert study_command(tmp_path, content, "--results", str(file.path)) == 0
    text = (study.folder / "results.json").read_text()
    (note,) = json.loads(text)["notes"]
    assert note.startswith("The arms of seed 1 do not begin with one model")
    assert note.endswith("differ by that too: random, entropy; margin.")
    assert note in Page(study.folder / "report.html").text
