"""Devices, compilers, checkpoints and disks that are not what a command needs.

Each ends in one sentence and exit code 2; nothing is made, changed or lost.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import files_of, make_voc, quick_config, run_test, run_train, write_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training of two steps."""
    folder = tmp_path_factory.mktemp("devices")
    settings: dict[str, Any] = quick_config(make_voc(folder / "voc"), folder / "runs")
    settings["al_settings"]["num_cycles"] = 0
    settings["ssl_settings"]["include_pseudolabels"] = False
    settings["trainer"]["steps_per_cycle"] = 2
    return write_config(folder / "config.json", settings)


@pytest.fixture(scope="module")
def finished(config: Path) -> Path:
    assert run_train("-c", config, "--run-id", "finished") == 0
    return config.parent / "runs" / "tiny" / "finished"


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "tiny" / "copy"))


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_of(folder)}


class Refused:
    """Runs what must be refused in `folder`, and checks how; returns the sentence."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys

    def __call__(self, command: Callable[[], int]) -> str:
        before = contents(self.folder)
        self.capsys.readouterr()
        assert command() == 2
        error = self.capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert contents(self.folder) == before
        return error.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, capsys)


def settings(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


# How many GPUs there are, what is set, and the start of the sentence.
DEVICES: dict[str, tuple[int, tuple[str, ...], str]] = {
    "more GPUs than there are": (1, ("n_gpu=2",), "2 GPU(s) asked for, 1 found: use --device cpu"),
    "an image for every GPU": (
        2,
        ("n_gpu=2", "batch_size=1"),
        "batch_size is 1 for 2 devices: each needs an image at least, and batch_size is that of "
        "all together",
    ),
    "compiling for several GPUs": (
        2,
        ("n_gpu=2", "trainer.compile=true"),
        "trainer.compile is true for 2 GPUs in one process",
    ),
    "batch norm of one image": (
        0,
        ("batch_size=1", "arch.args.norm=batch"),
        "batch_size 1 gives batch norm 1 image(s) a device, and it wants 8: set batch_size to 8, "
        'or arch.args.norm to "group" ("frozen" with pretrained weights)',
    ),
    "batch norm of one image on one of the GPUs": (
        2,
        ("n_gpu=2", "batch_size=3", "arch.args.norm=batch"),
        "batch_size 3 gives batch norm 1 image(s) a device, and it wants 8: set batch_size to 16",
    ),
}


@pytest.mark.parametrize("words", [(), ("--dry-run",)], ids=["run", "dry run"])
@pytest.mark.parametrize("case", DEVICES)
def test_devices_that_cannot_do_it(
    config: Path,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
    words: tuple[str, ...],
) -> None:
    n_gpus, pairs, sentence = DEVICES[case]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    pairs = (*pairs, f"trainer.save_dir={tmp_path / 'runs'}")
    assert refused(lambda: run_train("-c", config, *settings(*pairs), *words)).startswith(sentence)


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_a_gpu_that_the_environment_hides(
    config: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """As on a machine with a GPU: CUDA shows those that the variable names."""

    def shown() -> int:
        return int(os.environ["CUDA_VISIBLE_DEVICES"] == "0")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: shown() > 0)
    monkeypatch.setattr(torch.cuda, "device_count", shown)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    sentence = refused(lambda: run_train("-c", config, "--device", "0"))
    assert f'CUDA_VISIBLE_DEVICES="{hidden}" shows 0 GPU(s)' in sentence
    assert os.environ["CUDA_VISIBLE_DEVICES"] == hidden


@pytest.mark.parametrize(
    ("pairs", "warned"),
    [
        (("arch.args.norm=batch", "batch_size=2"), True),
        (("arch.args.norm=group", "batch_size=1"), False),
        (("arch.args.norm=batch", "batch_size=8", "ssl_settings.include_pseudolabels=true"), False),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, tuple) else "",
)
def test_few_images_for_batch_norm(
    config: Path, pairs: tuple[str, ...], warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = settings(*pairs, "trainer.verbosity=1")
    assert run_train("-c", config, *words, "--dry-run") == 0
    said = capsys.readouterr().out
    assert ("2 image(s) a device, and it wants 8" in said) is warned
    assert ("the strong views of the student" in said) is (len(pairs) == 3)


def test_batch_norm_of_a_resumed_run(
    config: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run may lower its batch size, but not to single images."""
    words = settings("arch.args.norm=batch", f"trainer.save_dir={tmp_path / 'runs'}")
    assert run_train("-c", config, *words, "--run-id", "x") == 0
    run = tmp_path / "runs" / "tiny" / "x"
    longer = settings("al_settings.num_cycles=2")
    sentence = refused(lambda: run_train("--resume", run, "--bs", "1", *longer))
    assert sentence.startswith("batch_size 1 gives batch norm 1 image(s) a device")
    # Evaluation changes no statistics.
    saved = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**saved, "batch_size": 1}))
    assert run_test("-r", run) == 0


@pytest.mark.slow
def test_fewer_images_than_processes(config: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "train.py"), "-c", str(config), "--bs", "1"]
    command += settings(f"trainer.save_dir={tmp_path / 'runs'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode != 0
    # Whichever process is the first to see it, which says its rank where it is not rank 0.
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert [line.replace(" (rank 1)", "") for line in told] == [
        "error: batch_size is 1 for 2 processes: each needs an image at least, and batch_size is "
        "that of all together"
    ]
    assert not files_of(tmp_path)


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "flipped bit": flip_bit,
    "truncated": lambda content: content[: len(content) // 3],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_named_checkpoint_that_is_damaged(
    copy: Path, config: Path, refused: Refused, fault: str
) -> None:
    """Named, it is an error, though the run has a good one of the same cycle."""
    cycle = copy / "cycle_00"
    doors: dict[str, Callable[[Path], int]] = {
        "checkpoint_last.pth": lambda path: run_train("--resume", path),
        "model_best.pth": lambda path: run_test("-r", path),
    }
    for name, command in doors.items():
        path = cycle / name
        path.write_bytes(FAULTS[fault](path.read_bytes()))
        assert refused(lambda run=command, named=path: run(named)) == (
            f"{path} is damaged: its SHA-256 differs from {path}.sha256; name another one, or the "
            "run folder for its newest good one"
        )
    sentence = refused(
        lambda: run_train(
            *("-c", config, "--init-from", cycle / "model_best.pth"),
            *settings(f"trainer.save_dir={copy.parents[1]}"),
        )
    )
    assert sentence.startswith(f"{cycle / 'model_best.pth'} is damaged: its SHA-256 differs")


def test_a_named_checkpoint_of_other_data(copy: Path, tmp_path: Path, refused: Refused) -> None:
    voc = make_voc(tmp_path / "other", n=25)
    path = copy / "cycle_00" / "checkpoint_last.pth"
    words = settings(f"dataset.args.root={voc}")
    sentence = refused(lambda: run_train("--resume", path, *words))
    assert sentence == (
        f"the data is not that of {copy / 'initial.pth'}: its images or their split have "
        "changed; give the run its own again, or start a new one with --init-from"
    )


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: what fails then is what fails on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("words", [(), ("--dry-run",)], ids=["run", "dry run"])
def test_a_start_on_a_full_disk(
    config: Path, tmp_path: Path, refused: Refused, words: tuple[str, ...]
) -> None:
    place = settings(f"trainer.save_dir={tmp_path / 'runs'}")
    with largest_file(10_000):
        sentence = refused(lambda: run_train("-c", config, *place, *words))
    assert sentence.startswith("cannot write ") and "initial.pth: File too large" in sentence


@pytest.mark.parametrize("name", ["metrics.json", "predictions.json"])
def test_results_of_a_test_on_a_full_disk(
    copy: Path, refused: Refused, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers are told all the same, and no half of a folder stays."""
    assert run_test("-r", copy) == 0
    table = capsys.readouterr().out
    (made,) = copy.glob("test_*")
    size = (made / name).stat().st_size - 1
    shutil.rmtree(made)
    with largest_file(size):
        code = run_test("-r", copy)
    found = capsys.readouterr()
    assert code == 2 and found.err.startswith("error: cannot write") and name in found.err
    assert "mean" in table and found.out.splitlines()[:3] == table.splitlines()[:3]
    assert not list(copy.glob("test_*"))
