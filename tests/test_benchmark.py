"""The benchmark: both sides compute the same thing, and every part runs and reports."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as benchmark
from benchmarks.__main__ import main
from benchmarks.metrics import plain_ap50, plain_sensitivity, random_split
from benchmarks.options import Options
from benchmarks.sides import stock_model, training_sides, workload
from benchmarks.timing import Side, compare
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.eval.coco_eval import coco_ap
from med_sslal.eval.froc import sensitivity_k_fps
from med_sslal.utils.util import read_json

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SMALL = ("--small", "--device", "cpu")


def options(*words: str) -> Options:
    """What the command line makes of these words, without running it."""
    return benchmark.options_of(benchmark.parser().parse_args([*SMALL, *words]))


@pytest.mark.parametrize(
    "words",
    [
        ["--norm", "frozen", "--backbone", "resnet50", "--full"],
        ["--norm", "batch"],
        ["--norm", "group"],
    ],
    ids=" ".join,
)
def test_bare_is_the_same_model(words: list[str]) -> None:
    chosen = options(*words, "--precision", "fp32")
    with workload(chosen) as work, torch.no_grad():
        ours = work.model().eval()
        stock = stock_model(chosen, ours, CPU).eval()
        batch = next(iter(work.eval_loader(labels=False)))
        wanted = stock(list(batch.images))
        found = ours(batch.images).detections
    learns = [
        {name for name, value in model.named_parameters() if value.requires_grad}
        for model in (ours, stock)
    ]
    assert learns[0] == learns[1]
    for one, other in zip(found, wanted, strict=True):
        assert len(one.boxes) == len(other["boxes"]) > 0
        torch.testing.assert_close(one.scores, other["scores"], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(one.boxes, other["boxes"], atol=1e-2, rtol=1e-3)


def test_both_sides_learn_the_same_weights_at_the_same_rate() -> None:
    """Adam's first steps move a weight by about the rate, whatever its gradient."""
    with workload(options("--norm", "group")) as work:
        moves = []
        for side in training_sides(work):
            assert side.model is not None
            before = {name: value.clone() for name, value in side.model.named_parameters()}
            side.run()
            moves.append(
                {
                    name: (value - before[name]).abs().max().item()
                    for name, value in side.model.named_parameters()
                }
            )
    bare, ours = ({name for name, move in of.items() if move} for of in moves)
    assert bare == ours and len(ours) > 50
    assert max(moves[0].values()) == pytest.approx(max(moves[1].values()), rel=0.2)


@pytest.mark.parametrize("seed", range(3))
def test_the_plain_loops_measure_the_same(seed: int) -> None:
    split = random_split(30, seed)
    data = (split.predictions, split.annotations, split.infos, ["lesion"])
    assert plain_ap50(split) == pytest.approx(coco_ap(*data).values["AP50"])
    values = sensitivity_k_fps(*data, draws=0).values
    found = plain_sensitivity(split)
    assert found == pytest.approx({key: values[key] for key in found})
    assert found["sens_0.5fp"] < found["sens_16fp"] < 1


def test_ratio_and_noise() -> None:
    found = compare(
        "sleep",
        Side(lambda: time.sleep(0.05), 10),
        Side(lambda: time.sleep(0.2), 10),
        3,
        CPU,
        names=("short", "long"),
    ).to_json()
    assert found["pairs"] == 3
    assert 2 < found["ratio"] < 5
    assert found["noise_5_95"][0] <= found["noise"] <= found["noise_5_95"][1]
    assert found["sides"]["long"]["images_per_second"] < 50


def test_small_evaluation_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main([*SMALL, "--only", "loader,coco,froc", "--out", str(out)]) == 0
    content = read_json(out)
    names = [comparison["name"] for comparison in content["comparisons"]]
    assert names[:2] == ["three slices", "loader"] and len(names) == 5
    assert content["machine"]["cpu"] in capsys.readouterr().out
    assert content["options"]["image_size"] == 64


@pytest.mark.slow
def test_small_steps_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    parts = "training,evaluation,scoring,switches,refined,students,precision,drift"
    words = ("--switch", "trainer.precision=fp32", "--precision", "bf16", "--in-memory")
    assert main([*SMALL, "--only", parts, *words, "--out", str(out)]) == 0
    content, said = read_json(out), capsys.readouterr().out
    *names, refined, offline, online = [one["name"] for one in content["comparisons"]]
    switched = [f"{part} with trainer.precision=fp32" for part in ("training", "evaluation")]
    assert names == ["training step", "evaluation step", "scoring pass", *switched]
    assert refined.endswith(" boxes of an image")
    students = [f"step of a student, {mode}" for mode in ("offline", "mean teacher")]
    assert [offline, online] == students
    for comparison in content["comparisons"]:
        assert f"{comparison['name']}: " in said
        for side in comparison["sides"].values():
            assert sum(side["shares"].values()) == pytest.approx(1)
            assert side["shares"]["forward"] > 0
            learns = "training" in comparison["name"] or comparison["name"] in students
            assert (side["shares"]["backward"] > 0) == learns
            assert 0 < side["peak_memory_gib"] < 8
    precision, drift = content["checks"]["precision"], content["checks"]["drift"]
    for name in ("fp32", "bf16"):
        assert precision[name]["dtype"] == "float32"
        assert precision[name]["n_boxes"] > 0 and precision[name]["bf16_share"] < 0.5
        assert drift[name]["batch_sizes"] == [1, 3, 8]
    assert drift["fp32"]["largest_score_difference"] < 1e-4
    assert drift["fp32"]["least_overlap_of_selection"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--only", "training,speed"], "takes some of training"),
        (["--pairs", "0"], "takes a whole number of 1 or more"),
        (["--set", "trainer.precison=fp32"], "Did you mean"),
        (["--image-size", "16"], "integer, 32 or more"),
    ],
    ids=lambda part: part[0] if isinstance(part, list) else "",
)
def test_wrong_options(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: object = main([*SMALL, "--only", "froc", *words])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr().err
    assert code == 2 and sentence in said and "Traceback" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--small", "--device", "cuda"]) == 2
    assert "--device cpu" in capsys.readouterr().err


NOTES_WORDS = """#!/bin/bash
printf '%s\\n' "$*" >> "$NOTED"
for last; do :; done
case $* in *" --out "*) echo '{}' > "$last" ;; esac
"""


def on_gpu(out: Path, *slices: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The script for a GPU, on the CPU in its small mode."""
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "on_gpu.sh"), str(out), *slices],
        env={**os.environ, "SMALL": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        cwd=out.parent,
    )


def test_on_gpu_gives_words_that_the_benchmark_takes(tmp_path: Path) -> None:
    """What it starts is noted and not run: the parts themselves are run by the other tests."""
    python, noted = tmp_path / "python", tmp_path / "noted"
    python.write_text(NOTES_WORDS)
    python.chmod(0o755)
    words = {"PYTHON": str(python), "NOTED": str(noted)}
    done = on_gpu(tmp_path / "out", **words)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    keys = {f"trainer.{key}" for key in ("precision", "compile", "channels_last")}
    keys |= {"optimizer.args.fused", "deterministic"}
    wanted = {"checks", "batch2_bare_fp32", "loading", *(f"switch_{key}" for key in keys)}
    assert names == {*(f"{name}.json" for name in wanted), "log.txt"}
    lines = [shlex.split(line) for line in noted.read_text().splitlines()]
    (tests,) = [line[3] for line in lines if line[:3] == ["-m", "pytest", "-q"]]
    assert (ROOT / tests).is_file()
    parts = [line[2:] for line in lines if line[:2] == ["-m", "benchmarks"]]
    assert len(parts) == len(wanted) == len(lines) - 1
    for line in parts:
        chosen = benchmark.options_of(benchmark.parser().parse_args(line))
        changes = [*chosen.overrides, *chosen.switches]
        ConfigParser(chosen.config("root", "cache"), registries(), changes)
        assert bool(chosen.switches) == ("switches" in line)
    again = on_gpu(tmp_path / "out", "switches", **words)
    assert again.returncode == 0 and again.stdout.count("there already") == 2
    assert on_gpu(tmp_path / "out", "batches", **words).returncode == 2


@pytest.mark.slow
def test_a_slice_on_gpu_runs_in_its_small_mode(tmp_path: Path) -> None:
    done = on_gpu(tmp_path / "out", "exact", PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    comparisons = read_json(tmp_path / "out" / "switch_deterministic.json")["comparisons"]
    named = ["with deterministic=" in comparison["name"] for comparison in comparisons]
    assert named == [True, True]
