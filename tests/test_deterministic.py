"""fp32 in every command, and `deterministic: true`: a CPU's results stay the same."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import assert_same_run
from tiny import files_of, make_voc, quick_config, run_test, run_train, write_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.__main__ import main
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.model.roi_pool import RoIPool
from med_sslal.utils.arithmetic import arithmetic

ROOT = Path(__file__).parents[1]
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# Its passes are in fp32, on a GPU too. On request they take an operation that has no deterministic
# form, on a CPU neither.
MODULE = """
import os
import torch
from med_sslal.model.detectors import FasterRCNN

class Net(FasterRCNN):
    def forward(self, images, targets=None, frames=None):
        assert not torch.backends.cudnn.allow_tf32
        if "PUT" in os.environ:
            torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
        return super().forward(images, targets, frames)
"""
SENTENCE = (
    "error: deterministic is true, but there is no deterministic form of the operation put_: do "
    "without it, or set deterministic to false (--resume takes that too)\n"
)
ON = ("--set", "deterministic=true")


def flags() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


@pytest.fixture(scope="module", autouse=True)
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder with a detector; the environment is put back."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "det_lab.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv(WORKSPACE, "")
        patch.delenv(WORKSPACE)
        yield folder
        sys.modules.pop("det_lab", None)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = flags()
    yield
    assert flags() == before


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deterministic")
    settings: dict[str, Any] = quick_config(make_voc(folder / "voc"), folder / "runs")
    settings["arch"]["type"] = "det_lab.Net"
    settings["arch"]["args"]["backbone_name"] = "mobilenet_v3_large"
    settings["al_settings"]["num_cycles"] = 1
    settings["trainer"]["steps_per_cycle"] = 2
    return write_config(folder / "config.json", settings)


@pytest.fixture(scope="module")
def runs(config: Path) -> dict[bool, Path]:
    """A run without and one with the key."""
    for name, words in (("off", ()), ("on", ON)):
        assert run_train("-c", config, "--run-id", name, *words) == 0
    folder = config.parent / "runs" / "tiny"
    return {False: folder / "off", True: folder / "on"}


def test_a_cpu_gives_the_same_bits_with_and_without(runs: dict[bool, Path]) -> None:
    assert_same_run(runs[False], runs[True])
    for wanted, run in runs.items():
        assert json.loads((run / "config.json").read_text())["deterministic"] is wanted
        content = load_checkpoint(run / "cycle_01" / "checkpoint_last.pth")
        assert content["config"]["deterministic"] is wanted


@pytest.mark.parametrize("door", ["start", "resume", "test", "benchmark", "switch"])
def test_an_operation_without_a_deterministic_form(
    door: str,
    runs: dict[bool, Path],
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In every command it is one sentence."""
    run = Path(shutil.copytree(runs[True], tmp_path / "run"))
    (run / "cycle_01" / "metrics.json").unlink()
    small = ["--small", "--device", "cpu", "--set", "arch.type=det_lab.Net"]
    commands: dict[str, Callable[[], int]] = {
        "start": lambda: run_train("-c", config, "--dry-run", *ON),
        "resume": lambda: run_train("--resume", run),
        "test": lambda: run_test("-r", run / "cycle_01" / "model_best.pth"),
        "benchmark": lambda: main([*small, "--only", "scoring", *ON]),
        # The first side, without the key, has gone through before.
        "switch": lambda: main([*small, "--only", "switches", "--switch", ON[1]]),
    }
    monkeypatch.setenv("PUT", "1")
    assert commands[door]() == 2
    assert capsys.readouterr().err == SENTENCE


def test_the_same_operation_without_the_key(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUT", "1")
    assert run_train("-c", config, "--dry-run") == 0


def test_a_resumed_run_may_change_it(
    runs: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(runs[False], tmp_path / "run"))
    shutil.rmtree(run / "cycle_01")
    assert run_train("--resume", run, *ON) == 0
    assert "warning: deterministic: False -> True" in capsys.readouterr().out
    assert_same_run(runs[True], run)


@pytest.mark.slow
def test_every_process_of_torchrun_has_it(lab: Path, config: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "train.py"), "-c", str(config), "--dry-run", *ON]
    path = os.pathsep.join([str(ROOT), str(lab)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PUT": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=lab)
    assert done.returncode != 0
    assert SENTENCE in done.stderr or SENTENCE.replace("error", "error (rank 1)") in done.stderr


@pytest.mark.parametrize("value", [":0:0", ":4096:2:16:8", ""])
def test_another_workspace_of_cublas_is_refused(
    value: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WORKSPACE, value)
    before = files_of(config.parent)
    assert run_train("-c", config, "--run-id", "refused", *ON) == 2
    assert capsys.readouterr().err == (
        f"error: deterministic is true, but {WORKSPACE} is '{value}' in the environment: unset it, "
        "or set it to :4096:8 or :16:8\n"
    )
    assert files_of(config.parent) == before


@pytest.mark.parametrize(
    ("given", "kept"), [(None, ":4096:8"), (":16:8", ":16:8"), (":4096:8", ":4096:8")]
)
def test_what_is_set(given: str | None, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, given or "")
    if given is None:
        monkeypatch.delenv(WORKSPACE)
    assert torch.backends.cudnn.allow_tf32, "torch's default"
    with arithmetic(deterministic=False):
        assert not torch.backends.cudnn.allow_tf32
        assert flags() == (False, False, False) and os.environ.get(WORKSPACE) == given
    with pytest.raises(RuntimeError, match="something else"), arithmetic(deterministic=True):
        assert flags() == (True, True, False) and os.environ[WORKSPACE] == kept
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        raise RuntimeError("something else")
    assert torch.backends.cudnn.allow_tf32


class Operations(TorchDispatchMode):
    """Notes the names of the operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", [False, True])
def test_pooling_on_a_gpu_leaves_the_kernel_with_the_random_sums(
    wanted: bool, training: bool
) -> None:
    """Fake tensors have shapes and devices alone, so a GPU is not needed."""
    # Of several levels torchvision needs to know the RoIs.
    sides = (4, 8, 16) if wanted else (4,)
    pool = RoIPool(sides).train(training)
    with FakeTensorMode(), Operations() as called, arithmetic(deterministic=wanted):
        maps = {
            str(i): torch.rand(2, 8, 96 // side, 96 // side, device="cuda")
            for i, side in enumerate(sides)
        }
        boxes = [torch.rand(n, 4, device="cuda") for n in (5, 3)]
        pooled = pool(maps, boxes, [(96, 96)] * 2)
    assert pooled.device.type == "cuda" and pooled.shape == (8, 8, 7, 7)
    kinds = {name.split(".")[1] for name in called.names}
    assert ("roi_align" in kinds) is not wanted
    assert any("embedding_bag" in kind for kind in kinds) is wanted
