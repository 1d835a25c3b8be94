"""Small studies from start to report: stopped, killed, and gone on with from a file alone."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_report import Page
from test_study import ROOT, make_study, study_command
from tiny import files_of, make_voc, quick_config, run_train, wait_for, write_config

from med_sslal.base.checkpoint import load_checkpoint, weights_hash
from med_sslal.study.results_file import Outcome, ResultsFile

pytestmark = pytest.mark.slow

METRICS = ["test_sens_mean", "test_AP75"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(folder: Path, *words: str) -> list[str]:
    """The study in `folder`, as a user starts it; what it lists is in kept.json there."""
    words = ("-c", str(folder / "study.json"), "--device", "cpu", *words)
    return [sys.executable, "-m", "med_sslal", "study", *words, "--results", f"{folder}/kept.json"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that was stopped once and has gone on to its end."""
    folder = tmp_path_factory.mktemp("stopped")
    study = make_study(folder) | {"metrics": METRICS}
    (folder / "study.json").write_text(json.dumps(study))
    runs = folder / "results" / "tiny_study"
    words = command(folder)
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE)
    wait_for(runs / "random" / "s0" / "config.json", process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert b"go on with: python -m med_sslal study" in out
    assert not (runs / "results.json").exists()
    best = runs / "cycle0" / "s0" / "cycle_00" / "model_best.pth"
    first = best.stat().st_mtime_ns
    assert subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, check=False).returncode == 0
    assert best.stat().st_mtime_ns == first
    return folder


def outcomes_of(folder: Path) -> dict[tuple[str, int], Outcome]:
    return ResultsFile(folder / "kept.json").outcomes


def test_a_study_survives_a_stop_and_pairs_its_runs(
    stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, best = stopped / "results" / "tiny_study", "cycle_00/model_best.pth"
    for seed in (0, 1):
        shared = (folder / "cycle0" / f"s{seed}" / best).read_bytes()
        for arm in ("random", "entropy"):
            run = folder / arm / f"s{seed}"
            assert (run / best).read_bytes() == shared
            rows = json.loads((run / "summary.json").read_text())
            assert rows["finished"]
            assert [row["labelled_images"] for row in rows["cycles"]] == [4, 9]
            assert [row["steps"] for row in rows["cycles"]] == [2, 2]
        (row,) = json.loads((folder / "full" / f"s{seed}" / "summary.json").read_text())["cycles"]
        assert (row["labelled_images"], row["steps"]) == (12, 2)
    assert not list(folder.glob("**/checkpoint_*")), "keep_checkpoints is best"
    table = list(csv.DictReader((folder / "results.csv").open()))
    assert len(table) == 2 * (2 + 2 + 1)
    page = Page(folder / "report.html").text
    assert "tiny_study" in page and "runs have ended" not in page
    results = json.loads((folder / "results.json").read_text())
    assert [family["metric"] for family in results["families"]] == METRICS
    for family in results["families"]:
        assert set(family["images"]["arms"]) == {"random", "entropy"}
        assert family["images"]["full"].keys() == {"0", "1"}
    outcomes = outcomes_of(stopped)
    arms = ("random", "entropy", "full")
    assert outcomes.keys() == {(arm, seed) for arm in arms for seed in (0, 1)}
    for outcome in outcomes.values():
        assert outcome.machine["cpu"] and outcome.machine["torch"]
        assert all(one["seconds"]["train"] > 0 for one in outcome.cycles)
    assert len(outcomes["entropy", 0].cycles[0]["query"]) == 5

    # Only the small files of finished runs are needed to go on: on another machine, say.
    small = tmp_path / "results" / "tiny_study"
    shutil.copytree(folder, small, symlinks=True, ignore=shutil.ignore_patterns("*.pth*"))
    study = json.loads((stopped / "study.json").read_text()) | {"save_dir": str(small.parent)}
    shutil.copy(stopped / "run.json", tmp_path)
    assert study_command(tmp_path, study, "--print-commands") == 0
    assert capsys.readouterr().out == ""
    study["seeds"] = [0, 1, 2]
    assert study_command(tmp_path, study, "--print-commands") == 0
    names = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert names == ["cycle0/s2", "random/s2", "entropy/s2", "full/s2"]
    study["arms"]["margin"] = {"al_settings.args.al_criterion": ["margin"]}
    assert study_command(tmp_path, study, "--print-commands") == 0
    names = [line.split()[-1] for line in capsys.readouterr().out.splitlines()]
    assert names[:3] == ["cycle0/s0", "margin/s0", "cycle0/s1"]
    assert study_command(tmp_path, study, "--only", "cycle0/s0") == 0
    again = small / "cycle0" / "s0" / best
    assert weights_hash(load_checkpoint(again)["model"]) == weights_hash(
        load_checkpoint(folder / "cycle0" / "s0" / best)["model"]
    )
    study["arms"]["random"] = {"al_settings.args.al_criterion": ["margin"]}
    capsys.readouterr()
    assert study_command(tmp_path, study) == 2
    assert "al_settings.args.al_criterion ['random'], the study now says ['margin']" in (
        capsys.readouterr().err
    )


def test_a_killed_study_goes_on_from_its_file_alone(stopped: Path, tmp_path: Path) -> None:
    """One seed of the same study; with the listed runs of the other it gives the same results."""
    study = make_study(tmp_path) | {"metrics": METRICS}
    (tmp_path / "study.json").write_text(json.dumps(study))
    folder, kept = tmp_path / "results" / "tiny_study", tmp_path / "kept.json"
    words = command(tmp_path, "--seeds", "0")
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT)
    while not kept.exists() or ("random", 0) not in ResultsFile(kept).outcomes:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The run that was going on is no child of the killed study's session; wait until it ends.
    while any("med_sslal" in line for line in _commands_with(str(folder))):
        time.sleep(0.1)
    shutil.rmtree(folder)
    assert subprocess.run(words, cwd=ROOT, env=ENVIRONMENT).returncode == 0
    assert not (folder / "random" / "s0").exists(), "listed runs are not made again"
    whole, found = outcomes_of(stopped), outcomes_of(tmp_path)
    assert found.keys() == {key for key in whole if key[1] == 0}
    for key, outcome in found.items():
        assert [one.get("query") for one in outcome.cycles] == [
            one.get("query") for one in whole[key].cycles
        ]
    for key, outcome in whole.items():
        if key[1] == 1:
            ResultsFile(kept).add(*key, outcome)
    assert study_command(tmp_path, study, "--results", str(kept)) == 0
    expected = stopped / "results" / "tiny_study" / "results.json"
    assert (folder / "results.json").read_text() == expected.read_text()
    assert "runs have ended" not in Page(folder / "report.html").text


def _commands_with(text: str) -> list[str]:
    """Command lines of processes that hold a text."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            lines.append(line)
    return lines


def test_cycle_0_from_another_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quick_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    config["al_settings"]["num_cycles"] = 1
    path = write_config(tmp_path / "config.json", config)
    runs = tmp_path / "runs" / "tiny"
    assert run_train("-c", path, "--run-id", "alone") == 0
    first = ["--set", "al_settings.num_cycles=0", "--run-id", "first"]
    assert run_train("-c", path, *first) == 0
    assert run_train("-c", path, "--run-id", "second", "--cycle0-from", runs / "first") == 0
    for cycle in ("cycle_00", "cycle_01"):
        best = [
            load_checkpoint(runs / run / cycle / "model_best.pth") for run in ("second", "alone")
        ]
        assert weights_hash(best[0]["model"]) == weights_hash(best[1]["model"])
    chosen = [(runs / run / "cycle_00/selection.json").read_text() for run in ("second", "alone")]
    assert chosen[0] == chosen[1]

    capsys.readouterr()
    before = files_of(tmp_path)
    for words, text in (
        (["--cycle0-from", runs], "is no run folder"),
        (["--cycle0-from", runs / "first", "--lr", "0.5"], "optimizer.args.lr is 0.02 in"),
        (
            ["--cycle0-from", runs / "first", "--set", "al_settings.args.init_num=5"],
            "al_settings.args.init_num is 4 in",
        ),
        (["--cycle0-from", runs / "first", "--set", "trainer.epochs=3"], "trainer.epochs is 2 in"),
    ):
        assert run_train("-c", path, "--run-id", "third", *words) == 2
        assert text in capsys.readouterr().err
    assert files_of(tmp_path) == before


def test_the_slices_for_a_gpu_keep_what_finished_runs_gave(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in ("benchmarks", "configs"):
        (tree / name).mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks" / "study_on_gpu.sh", tree / "benchmarks")
    study = make_study(tree / "configs")
    (tree / "configs" / "study_tiny.json").write_text(json.dumps(study))
    script = [str(tree / "benchmarks" / "study_on_gpu.sh"), "kept", "tiny", "--device", "cpu"]
    environment = ENVIRONMENT | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}

    def call(*words: str) -> str:
        done = subprocess.run(
            ["bash", *script, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("--only", "full/s0")
    assert files_of(tmp_path / "kept") == {"study_tiny.json"}
    # A fresh machine: nothing but what was kept.
    shutil.rmtree(study["save_dir"])
    left = call("--print-commands")
    assert "full/s0" not in left and "full/s1" in left
    # A slice that is too short for anything stops quietly.
    environment["SECONDS_PER_SLICE"] = "1"
    assert "slice over" in call("--jobs", "1")
