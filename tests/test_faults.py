"""What a machine does to a run: damaged files, full and read-only disks, signals, kills."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from same_run import assert_same_run
from tiny import cut, files_of, make_voc, quick_config, run_test, run_train, wait_for, write_config

from med_sslal.__main__ import main
from med_sslal.base.checkpoint import load_checkpoint, save_checkpoint, sidecar
from med_sslal.trainer.new_folder import filled_first, new_results
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import write_json

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    settings = quick_config(make_voc(folder / "voc"), folder / "runs")
    settings["al_settings"]["num_cycles"] = 1
    # Every epoch gives a best model: which one is no matter of luck.
    settings["trainer"] |= {"keep_checkpoints": "all", "monitor": "off"}
    # In the place of a rejected student's model the supervised one is put again, good as it is.
    settings["ssl_settings"]["gate"] = False
    return write_config(folder / "config.json", settings)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """The unbroken run; tests that change it take a copy."""
    assert run_train("-c", config, "--run-id", "whole") == 0
    return config.parent / "runs" / "tiny" / "whole"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "runs" / "tiny" / "copy"))


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the error."""
    error = capsys.readouterr().err
    text = error[error.index("error: ") :]
    assert text.count("\n") == 1 and "Traceback" not in error, error
    return text


def test_a_run_folder_has_its_name_when_all_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    with filled_first(folder) as partial:
        (partial / "config.json").write_text("{}")
        assert not folder.exists()
    assert files_of(tmp_path) == {"runs/x/config.json"} and folder.stat().st_mode & 0o777 == 0o755


def test_what_is_written_is_as_private_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with filled_first(tmp_path / "x") as partial:
            write_json(partial / "config.json", {})
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "x", tmp_path / "x/config.json")]
    assert modes == [0o700, 0o600]


def test_results_that_fail_leave_a_folder_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(UserError), new_results(tmp_path / name) as out:
            write_json(out.metrics, {})
            (out.path / "more").mkdir()
            raise UserError("no")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_a_run_folder_that_is_not_finished_leaves_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error), filled_first(tmp_path / "x") as partial:
        (partial / "initial.pth").write_text("")
        raise error
    assert not list(tmp_path.iterdir())


def test_of_two_runs_of_one_name_the_first_wins(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="exists already"),
        filled_first(tmp_path / "x") as second,
    ):
        (second / "config.json").write_text("second")
        with filled_first(tmp_path / "x") as first:
            (first / "config.json").write_text("first")
    assert files_of(tmp_path) == {"x/config.json"}
    assert (tmp_path / "x" / "config.json").read_text() == "first"


def test_what_killed_processes_left_is_removed(copy: Path, whole: Path) -> None:
    (copy / ".config.json.abcd.partial").write_text("{")
    (copy / "cycle_01" / ".checkpoint_last.pth.abcd.partial").write_bytes(b"half")
    (copy / "cycle_01" / ".record.partial" / "plain").mkdir(parents=True)
    assert run_train("--resume", copy) == 0
    assert files_of(copy) == files_of(whole)


def test_latest_is_looked_for_where_the_run_folders_are(
    whole: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["--resume", "latest", "--print-config"]
    assert run_train(*line, "--set", f"trainer.save_dir={whole.parents[1]}") == 0
    assert '"name": "tiny"' in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert run_train(*line) == 2
    looked = f"there is no run folder {tmp_path}/exp_results/latest, where alone 'latest' is looked"
    assert looked in sentence(capsys)
    doors = ["status latest", "report latest", "test -r latest", "export -r latest --out x"]
    for words in (*doors, "select --record latest --criterion entropy --budget 1"):
        assert main(words.split()) == 2
        assert looked in sentence(capsys)


def test_a_damaged_best_model_takes_the_training_back_behind_it(
    copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = copy / "cycle_01"
    assert load_checkpoint(cycle / "model_best.pth")["epoch"] == 2
    assert load_checkpoint(cycle / "model_best_previous.pth")["epoch"] == 1
    cut(cycle, "training.json", "metrics.json")
    flip_bit(cycle / "model_best.pth")
    assert run_train("--resume", copy) == 0
    said = capsys.readouterr().out
    assert "the best model so far, of epoch 2, is lost" in said and "falling back" in said
    assert_same_run(whole, copy)


def test_a_training_without_its_best_model_says_what_to_do(
    copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cycle = copy / "cycle_01"
    cut(cycle, "training.json", "metrics.json", "model_best_previous.pth")
    (cycle / "model_best.pth").write_bytes(b"")
    assert run_train("--resume", copy) == 2
    said, error = capsys.readouterr()
    assert f"Remove {cycle}: --resume trains this cycle anew" in error
    assert "go on with" not in said, "the same command would end alike"
    assert f"{cycle / 'model_best.pth'} is damaged" in error
    cut(copy, "cycle_01")
    assert run_train("--resume", copy) == 0
    assert_same_run(whole, copy)


def test_a_damaged_best_model_of_a_finished_training(
    copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = copy / "cycle_01" / "model_best.pth"
    cut(copy, "cycle_01/metrics.json")
    flip_bit(best)
    assert run_train("--resume", copy) == 2
    words = f"Remove {copy / 'cycle_01'} and the cycles after it: --resume trains them anew"
    error = sentence(capsys)
    assert words in error and f"{best} is damaged" in error
    assert run_test("-r", best) == 2
    assert f"{best} is damaged" in sentence(capsys)
    assert run_test("-r", copy) == 0
    said = capsys.readouterr().out
    assert f"{best} is damaged" in said
    assert f"falling back to {copy / 'cycle_00' / 'model_best.pth'}" in said


DAMAGED = {
    # A file that is damaged, and what is to be removed.
    "cycle_00/selection.json": (
        "{}/cycle_00/selection.json and the cycles after cycle_00: --resume queries again",
        ["cycle_00/selection.json", "cycle_01"],
    ),
    "cycle_00/record/plain/boxes.npy": (
        "{}/cycle_00/record: --resume scores again",
        ["cycle_00/record"],
    ),
    "cycle_01/predictions.json": (
        "{}/cycle_01/metrics.json: --resume measures again",
        ["cycle_01/metrics.json"],
    ),
    "cycle_00/metrics.json": (
        "{}/cycle_00/metrics.json: --resume measures again",
        ["cycle_00/metrics.json"],
    ),
    "cycle_01/pool.json": (
        "{}/cycle_01/pool.json: --resume makes it again or does without",
        ["cycle_01/pool.json"],
    ),
    "environment.json": ("{}/environment.json: the run does without it", ["environment.json"]),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_of_a_run_says_what_to_remove(
    copy: Path, whole: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, removed = DAMAGED[name]
    if "record" in name:
        cut(copy, "cycle_01", "cycle_00/selection.json")
    if name == "environment.json":
        cut(copy, "cycle_01/metrics.json")
    path = copy / name
    path.write_bytes(path.read_bytes()[:100])
    lines = [["train", "--resume", copy], ["report", copy]]
    if "record" in name:
        chosen = ["--criterion", "entropy", "--budget", "1", "--first", "0"]
        lines[1] = ["select", "--record", copy, *chosen]
    # Resuming makes the pool of the last cycle again of itself.
    for line in lines["pool" in name :]:
        assert main([*map(str, line)]) == 2
        said, error = capsys.readouterr()
        assert str(path) in error and f". Remove {words.format(copy)}\n" in error
        assert error.count("\n") == 1 and "go on with" not in said
    cut(copy, *removed)
    assert run_train("--resume", copy) == 0
    assert "nothing was left to do" not in capsys.readouterr().out
    assert_same_run(whole, copy)


def test_no_advice_costs_a_training_or_an_answer(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record of a query that is made is for looking; who answered what stands in pool.json."""
    for number, name in enumerate(("record", "record_val")):
        path = copy / "cycle_00" / name / "plain" / "boxes.npy"
        path.write_bytes(path.read_bytes()[:100])
        more = ["--explain"] if number else ["--criterion", "entropy", "--budget", "1"]
        assert main(["select", "--record", str(copy / "cycle_00"), *more]) == 2
        error = sentence(capsys)
        assert str(path) in error and "name another" in error and "Remove" not in error
    (copy / "answers.jsonl").touch()
    (copy / "cycle_01" / "pool.json").write_text("{")
    assert main(["report", str(copy)]) == 2
    assert "Remove" not in sentence(capsys)


def test_a_run_whose_only_model_is_damaged_says_what_to_do(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(copy, "cycle_01")
    flip_bit(copy / "cycle_00" / "model_best.pth")
    assert run_test("-r", copy) == 2
    error = sentence(capsys)
    assert "no usable checkpoint" in error and f"Remove {copy / 'cycle_00'} and the cycles" in error


def test_damaged_initial_weights(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bit(copy / "initial.pth")
    assert run_train("--resume", copy) == 2
    error = sentence(capsys)
    assert "initial.pth is damaged" in error and "put back a copy with its .sha256 file" in error


@pytest.mark.parametrize("form", ["checkpoint", "bare"])
def test_init_from_takes_a_foreign_file_with_a_warning(
    whole: Path, config: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "foreign.pth"
    content = load_checkpoint(whole / "cycle_01" / "model_best.pth")
    torch.save(content if form == "checkpoint" else content["model"], path)
    line = ["-c", config, "--dry-run", "--init-from", path]
    assert run_train(*line) == 0
    assert "foreign.pth has no checksum file beside it: it is taken unverified" in (
        capsys.readouterr().out
    )
    save_checkpoint(path, content)
    flip_bit(path)
    assert run_train(*line) == 2
    assert "foreign.pth is damaged" in sentence(capsys)


def test_test_takes_a_checkpoint_without_a_checksum(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = copy / "cycle_01" / "model_best.pth"
    sidecar(best).unlink()
    assert run_test("-r", best) == 0
    assert "model_best.pth has no checksum file beside it: it is taken" in capsys.readouterr().out


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: what fails then is what fails on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


FULL = {
    # Stage: what is taken back, and the file that does not fit any more.
    "start": (["cycle_01/metrics.json"], "config.json"),
    "training": (["cycle_01"], "cycle_01/checkpoint_last.pth"),
    "scoring": (
        ["cycle_01", "cycle_00/selection.json", "cycle_00/record"],
        "cycle_00/record/plain/embeddings.npy",
    ),
}


@pytest.mark.parametrize("stage", FULL)
def test_a_full_disk(
    copy: Path, whole: Path, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names, large = FULL[stage]
    cut(copy, *names)
    with largest_file((whole / large).stat().st_size - 1):
        assert run_train("--resume", copy) == 2
    found = capsys.readouterr()
    assert found.err.startswith("error: cannot write") and found.err.count("\n") == 1
    assert (
        f"what is done is kept; go on with: python -m med_sslal train --resume {copy}" in found.out
    )
    assert run_train("--resume", copy) == 0
    assert_same_run(whole, copy)
    assert not [name for name in files_of(copy) if ".partial" in name]


def test_a_log_that_cannot_grow_does_not_end_a_run(
    copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(copy, "cycle_01/metrics.json")
    with (copy / "train.log").open("ab") as log:
        log.truncate(2**27)
    with largest_file(2**27):
        assert run_train("--resume", copy) == 0
    found = capsys.readouterr()
    assert found.out.count("warning: cannot write all of") == 1 and not found.err
    assert_same_run(whole, copy)


def test_a_read_only_run_folder(copy: Path, whole: Path) -> None:
    cut(copy, "cycle_01/metrics.json")
    mount = f"mount --bind {copy} {copy} && mount -o remount,ro,bind {copy}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("this machine does not let the test mount a folder read-only")
    before = files_of(copy)
    train = f"{sys.executable} {ROOT / 'train.py'} --resume {copy}"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mount} && {train}"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: cannot write {copy}") and done.stderr.count("\n") == 1
    assert "Read-only file system" in done.stderr
    assert files_of(copy) == before
    assert run_train("--resume", copy) == 0
    assert_same_run(whole, copy)


def test_a_run_that_another_process_is_at_work_in(
    copy: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hold = (
        "import sys, pathlib; from med_sslal.logger.logger import add_log_file; "
        "add_log_file(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", hold, str(copy / "train.log")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, text=True, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        before = {name: (copy / name).stat().st_mtime_ns for name in files_of(copy)}
        assert run_train("--resume", copy) == 2
        assert f"another process is at work in {copy}" in sentence(capsys)
        assert before == {name: (copy / name).stat().st_mtime_ns for name in files_of(copy)}
        process.kill()
    assert run_train("--resume", copy) == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_of_a_run(
    whole: Path, copy: Path, number: signal.Signals
) -> None:
    cut(copy, "cycle_01")
    words = [sys.executable, str(ROOT / "train.py"), "--resume", str(copy)]
    words += ["--set", "n_workers=2"]
    with subprocess.Popen(
        words, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for(copy / "cycle_01" / "checkpoint_last.pth", process)
        os.killpg(process.pid, number)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, output
    assert f"--resume {copy}" in output
    assert run_train("--resume", copy, "--set", "n_workers=0") == 0
    assert_same_run(whole, copy)


@pytest.mark.slow
def test_kills_at_random_instants() -> None:
    words = ["-m", "tests.kill_run", "--kills", "4", "--seed", "0", "--cycles", "1"]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills, seed 0" in done.stdout
