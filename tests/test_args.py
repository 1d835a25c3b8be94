import subprocess
import sys
from pathlib import Path

import pytest
from commands import train_args

from med_sslal.cli.args import parse
from med_sslal.config.overrides import Override

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_help_waits_for_no_torch(script: str) -> None:
    code = (
        "import runpy, sys; sys.argv.append('--help')\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout and "--device" in done.stdout


def test_train_options_become_overrides() -> None:
    line = "-c x.json --lr 1e-3 --set a.b=c=d --set seed=1 --bs 8 -d 2,3 --run-id one --dry-run"
    parsed = train_args(line.split())
    assert parsed.overrides == [
        Override("--lr", ("optimizer", "args", "lr"), 1e-3),
        Override("--set", ("a", "b"), "c=d"),
        Override("--set", ("seed",), 1),
        Override("--bs", ("batch_size",), 8),
    ]
    assert (parsed.config, parsed.device, parsed.run_id) == ("x.json", "2,3", "one")
    assert parsed.dry_run and not parsed.print_config and parsed.resume is None


def test_two_parses_share_nothing() -> None:
    train_args(["-c", "x", "--set", "seed=1", "--lr", "1"])
    assert train_args(["-c", "x"]).overrides == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--resume", "latest", "--set", "trainer.epochs=60"],
        ["--help-config"],
        ["-r", "x", "-d", "cpu"],
    ],
    ids=" ".join,
)
def test_train_accepts(argv: list[str]) -> None:
    train_args(argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give one of -c FILE"),
        (["-c", "x", "-r", "y"], "give one of -c FILE"),
        (["-r", "x", "--init-from", "y"], "--init-from starts a new run"),
        (["-r", "x", "--run-id", "y"], "--run-id starts a new run"),
        (["-r", "x", "--dry-run"], "--dry-run tries a new run"),
        (["-c", "x", "--set", "epochs"], "argument --set: takes KEY=VALUE"),
        (["-c", "x", "-d", "gpu"], "allowed: string: cpu, cuda or different GPU numbers"),
        (["-c", "x", "-d", "2,2"], "different GPU numbers"),
        (["-c", "x", "--run-id", "../y"], "allowed: string: a folder name"),
        (["-c", "x", "--run-id", "."], "allowed: string: a folder name"),
        (["-c", "x", "--print-config", "--dry-run"], "not allowed with"),
        (["-c", "x", "--conf", "y"], "unrecognized arguments"),
        (["--resum", "x"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_train_line_exits_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        train_args(argv)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_test_options() -> None:
    parsed = parse(["test", "-r", "latest"])
    assert (parsed.resume, parsed.split, parsed.device) == ("latest", "test", None)
    for wrong in ([], ["-r", "x", "--split", "train"], ["-r", "x", "--dev", "cpu"]):
        with pytest.raises(SystemExit) as caught:
            parse(["test", *wrong])
        assert caught.value.code == 2


def test_predict_keeps_by_one_of_two_measures(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["predict", "-r", "x", "--images", "y", "--out", "z"]
    for fps in ("1", "2"):
        with pytest.raises(SystemExit) as caught:
            parse([*line, "--threshold", "0.4", "--fps", fps])
        assert caught.value.code == 2
        assert "--fps: not allowed with argument --threshold" in capsys.readouterr().err
