"""Several processes: each sees its share, and all together do what one does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from same_run import assert_same_run
from tiny import SUPERVISED, make_voc, quick_config, run_train, wait_for, write_config
from torch import nn
from torch.distributed import TCPStore

from med_sslal.base.types import Target
from med_sslal.cli.build import build_dataset, devices_of
from med_sslal.cli.registries import registries
from med_sslal.cli.running import resume_command
from med_sslal.cli.train import build_setup
from med_sslal.config.parse_config import ConfigParser
from med_sslal.data.sampler import EpochBatchSampler, whole_batches
from med_sslal.model.detectors import RetinaNet
from med_sslal.model.norm import share_batch_norm
from med_sslal.model.parallel import distribute, unwrap
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import ConfigError, DeviceError
from med_sslal.utils.interrupt import StopRequest
from med_sslal.utils.util import read_json

ROOT = Path(__file__).parents[1]
STEPS = 20


def worlds(size: int) -> list[World]:
    return [World(rank, size, rank, size, launched=True) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("n", "n_pseudo", "batch_size"), [(10, 0, 4), (7, 20, 6), (1, 0, 4), (9, 2, 8), (3, 3, 2)]
)
def test_processes_share_every_batch_in_order(
    n: int, n_pseudo: int, batch_size: int, size: int
) -> None:
    whole = list(EpochBatchSampler(n, n_pseudo, batch_size, seed=1))
    samplers = [EpochBatchSampler(n, n_pseudo, batch_size, 1, world) for world in worlds(size)]
    parts = [list(sampler) for sampler in samplers]
    for number, batch in enumerate(whole):
        shares = [sampler.share(number) for sampler in samplers]
        assert max(map(len, shares)) - min(map(len, shares)) <= 1 and len(shares[0]) > 0
        own = [part[number] for part, share in zip(parts, shares, strict=True) if share]
        assert [key for part in own for key in part] == batch
        # Every process takes part in every step.
        assert all(len(part[number]) >= 1 for part in parts)
        pseudo = sum(position >= n for position, _ in batch)
        assert samplers[0].counts(number) == (len(batch) - pseudo, pseudo)


@pytest.mark.parametrize(
    ("n", "batch_size", "size"), [(10, 4, 2), (10, 1, 3), (1, 4, 2), (0, 4, 2)]
)
def test_each_image_is_evaluated_by_one_process(n: int, batch_size: int, size: int) -> None:
    parts = [whole_batches(n, batch_size, world) for world in worlds(size)]
    assert sorted(batch for part in parts for batch in part) == whole_batches(n, batch_size)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cycle 1 trains on 8 labelled and some pseudo-labelled images, one batch an epoch."""
    folder = tmp_path_factory.mktemp("processes")
    settings = quick_config(make_voc(folder / "voc"), folder / "runs")
    settings["batch_size"] = 8
    # No choice hangs on rounding, which differs between one process and two: proposals that are
    # alike in objectness but for that may change places, but they overlap little, and none is cut
    # off or left out.
    settings["arch"]["args"] |= {
        "fpn": False,
        "anchor_sizes": [[12, 24]],
        "aspect_ratios": [1.0],
        "rpn_pre_nms_top_n_train": 1000,
        "rpn_post_nms_top_n_train": 1000,
        "box_batch_size_per_image": 512,
    }
    settings["optimizer"]["args"]["lr"] = 0.0003
    settings["al_settings"]["num_cycles"] = 1
    settings["al_settings"]["args"] |= {
        "budget_num": 4,
        "al_criterion": [["localization_tightness", "box_self_consistency"], "k_means_diversity"],
    }
    settings["trainer"] |= {
        "accumulate": 2,
        "steps_per_cycle": STEPS,
        "val_period": 100,
        "monitor": "off",
    }
    return write_config(folder / "config.json", settings)


LAUNCH = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        pytest.param(
            ("--device", "2,3"), LAUNCH, "CUDA_VISIBLE_DEVICES=2,3 before torchrun", id="device"
        ),
        pytest.param(("--set", "n_gpu=2"), LAUNCH, "--nproc_per_node", id="n_gpu"),
        pytest.param((), {"RANK": "0"}, "not WORLD_SIZE", id="no torchrun"),
    ],
)
def test_what_torchrun_cannot_take(
    config: Path,
    words: tuple[str, ...],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", **environment}.items():
        monkeypatch.setenv(name, value)
    assert run_train("-c", config, "--run-id", "refused", *words) == 2
    assert message in capsys.readouterr().err
    assert not (config.parent / "runs" / "tiny" / "refused").exists()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch, config: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    parser = ConfigParser.from_file(config, registries())
    with pytest.raises(DeviceError, match=r"2 processes on this machine, 1 GPU\(s\) found"):
        devices_of(parser, "cuda", worlds(2)[0])


def test_a_batch_needs_an_image_for_each_process(config: Path) -> None:
    parser = ConfigParser.from_file(config, registries())
    world = worlds(17)[0]
    with pytest.raises(ConfigError, match="batch_size is 8 for 17 processes"):
        build_setup(
            parser,
            build_dataset(parser),
            devices_of(parser, "cpu", world),
            show_progress=False,
            world=world,
        )


def test_only_the_first_process_tells_of_an_error(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun's store keeps count of those that have failed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        **LAUNCH,
        "RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    assert run_train("-c", config, "--set", "n_gpu=2") == 2
    assert capsys.readouterr().err.startswith("error (rank 1): n_gpu is 2")
    monkeypatch.setenv("RANK", "0")
    assert run_train("-c", config, "--set", "n_gpu=2") == 2
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("started", "alone", "script"),
    [
        ("./train.py", "python train.py", "train.py"),
        ("bin/med-sslal", "med-sslal train", "-m med_sslal train"),
        ("med_sslal/__main__.py", "python -m med_sslal train", "-m med_sslal train"),
    ],
)
def test_the_way_to_go_on_is_the_way_of_the_launch(
    started: str, alone: str, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed package has no train.py."""
    monkeypatch.setattr(sys, "argv", [started])
    folder = Path("runs/x")
    assert resume_command(folder, World()) == f"{alone} --resume runs/x"
    assert resume_command(folder, World(0, 4, 0, 4, launched=True)) == (
        f"torchrun --standalone --nproc_per_node=4 {script} --resume runs/x"
    )
    assert resume_command(folder, World(0, 4, 0, 2, launched=True)) == (
        f"torchrun, on each machine with the options of before, {script} --resume runs/x"
    )


def test_a_signal_that_comes_twice_at_once_stops_once() -> None:
    """From the cluster, and from torchrun; a second Ctrl-C is one that was meant."""
    with StopRequest() as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def in_two_processes(work: Callable[[int, World, int, Path], None], folder: Path) -> None:
    """Forked ones, which need not import torch anew."""
    words = (World(0, 2), free_port(), folder)
    mp.start_processes(work, words, nprocs=2, start_method="fork")


def normalise(rank: int, world: World, port: int, folder: Path) -> None:
    """One process's share of three images through a shared batch norm."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world.size)}
    model = nn.Sequential(nn.BatchNorm2d(4))
    images = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    own = images[:2] if rank == 0 else images[2:]
    own.requires_grad_()
    with World(rank, world.size).joined(gpus=False):
        share_batch_norm(model)
        result = model(own)
        result.pow(3).sum().backward()
    torch.save(
        [result.detach(), own.grad, model[0].weight.grad, model.state_dict()], folder / f"{rank}.pt"
    )


@pytest.mark.slow
def test_batch_norm_sees_the_images_of_all_processes(tmp_path: Path) -> None:
    in_two_processes(normalise, tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model = nn.Sequential(nn.BatchNorm2d(4))
    images = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    result = model(images)
    result.pow(3).sum().backward()
    for place, whole in enumerate((result.detach(), images.grad)):
        found = torch.cat([part[place] for part in parts])
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)
    slope = parts[0][2] + parts[1][2]
    torch.testing.assert_close(slope, model[0].weight.grad, atol=1e-4, rtol=1e-4)
    for part in parts:
        assert part[3].keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(part[3][name], value)


def retinanet() -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(num_classes=3, backbone_name="resnet18", fpn_channels=32, norm="batch")


def gradients_of(model: nn.Module, images: slice) -> dict[str, torch.Tensor]:
    """Gradients of the mean loss of these of four images."""
    pixels = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flags = torch.ones(1, dtype=torch.bool)
    targets = [
        Target(torch.tensor([[8.0, 6.0, 30.0 + i, 40.0]]), torch.tensor([1 + i % 2]), ~flags, flags)
        for i in range(4)
    ]
    losses = model.train()(pixels[images], targets[images]).losses
    sum(losses.values()).mean().backward()
    return {name: value.grad for name, value in unwrap(model).named_parameters()}


def train_retinanet(rank: int, world: World, port: int, folder: Path) -> None:
    """One process's share of a step: two images of four."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world.size)}
    own = World(rank, world.size)
    with own.joined(gpus=False):
        gradients = gradients_of(distribute(retinanet(), own), slice(2 * rank, 2 * rank + 2))
    torch.save(gradients, folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_train_a_retinanet_as_one_does(tmp_path: Path) -> None:
    in_two_processes(train_retinanet, tmp_path)
    whole = gradients_of(retinanet(), slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found.keys() == whole.keys()
        for name, value in whole.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(found[name], value, atol=1e-4 * scale + 1e-7, rtol=1e-3)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def torchrun(config: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts train.py in two processes of one thread each; nothing of them is left afterwards."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        command += [f"--master_port={free_port()}", str(ROOT / "train.py"), *map(str, words)]
        started.append(
            subprocess.Popen(
                command,
                cwd=config.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.communicate()


@pytest.fixture(scope="module")
def alone(config: Path) -> Path:
    """The run of one process."""
    assert run_train("-c", config, "--run-id", "alone") == 0
    return config.parent / "runs" / "tiny" / "alone"


@pytest.mark.slow
def test_two_processes_do_what_one_does(
    alone: Path, config: Path, torchrun: Callable[..., subprocess.Popen[str]]
) -> None:
    """From the same model the same choice, and from it the same training with pseudo-labels."""
    run = torchrun("-c", config, "--run-id", "two", "--cycle0-from", alone)
    text, _ = run.communicate()
    assert run.returncode == 0, text
    assert text.count("report: ") == 1
    folder = alone.with_name("two")
    for name in ("selection.json", "pseudo_labels.json"):
        one, two = (read_json(path / "cycle_00" / name) for path in (alone, folder))
        assert one == two, name
    assert one["labels"], "without pseudo-labels the test shows less"
    histories = [
        read_json(path / "cycle_01" / "training.json")["history"] for path in (alone, folder)
    ]
    assert [values["step"] for values in histories[0]] == list(range(1, STEPS + 1))
    for one, two in zip(*histories, strict=True):
        names = [name for name in one if name.startswith("loss")]
        assert len(names) == 5
        for name in names:
            assert two[name] == pytest.approx(one[name], abs=1e-4), (name, one["step"])
    weights = [torch.load(path / "cycle_01" / "checkpoint_last.pth") for path in (alone, folder)]
    assert weights[0].keys() == weights[1].keys()
    assert weights[0]["model"].keys() == weights[1]["model"].keys()


@pytest.mark.slow
def test_two_processes_have_a_mean_teacher_as_one_does(
    config: Path, torchrun: Callable[..., subprocess.Popen[str]]
) -> None:
    """One that stays for ten steps, then follows; with two batches to a step, and a tail."""
    keys = ("ssl_settings.mode=mean_teacher", "ssl_settings.tail=0.25", "ssl_settings.gate=false")
    keys += ("trainer.ema=true", "al_settings.num_cycles=0")
    words = ("-c", config, *(word for key in keys for word in ("--set", key)))
    assert run_train(*words, "--run-id", "taught") == 0
    run = torchrun(*words, "--run-id", "taught_by_two")
    text, _ = run.communicate()
    assert run.returncode == 0, text
    cycles = [
        config.parent / "runs" / "tiny" / name / "cycle_00" for name in ("taught", "taught_by_two")
    ]
    histories = [read_json(cycle / "training.json")["history"] for cycle in cycles]
    assert [values["step"] for values in histories[0]] == list(range(1, STEPS + 1))
    for one, two in zip(*histories, strict=True):
        names = [name for name in one if name.startswith(("loss", "pseudo", "teacher"))]
        assert len(names) == (14 if one["step"] <= 15 else 5)
        for name in names:
            wanted = one[name] if one[name] is None else pytest.approx(one[name], abs=1e-4)
            assert two[name] == wanted, (name, one["step"])
    assert histories[0][0]["teacher_boxes"] > 1, "without boxes the test shows less"


def worker(run: subprocess.Popen[str], rank: int) -> int:
    """The process id of a rank of torchrun's."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    for child in children:
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text():
            return int(child)
    raise AssertionError(f"no rank {rank} among {children}")


LONG = (
    *SUPERVISED,
    *("--set", "trainer.steps_per_cycle=100000", "--set", "trainer.checkpoint_seconds=0.5"),
)


def end(run: subprocess.Popen[str], number: signal.Signals) -> str:
    """Send a signal to rank 1: the other one ends too; returns what both said."""
    other = worker(run, 0)
    os.kill(worker(run, 1), number)
    killed = time.monotonic()
    text, _ = run.communicate()
    assert time.monotonic() - killed < 30
    assert run.returncode != 0 and not Path(f"/proc/{other}").exists()
    assert re.search(r"go on with: torchrun .*=2 train\.py --resume \S+", text), text
    return text


@pytest.mark.slow
def test_one_process_that_is_asked_to_stop_stops_the_other(
    config: Path, torchrun: Callable[..., subprocess.Popen[str]]
) -> None:
    """At once, with all of it saved."""
    last = config.parent / "runs" / "tiny" / "asked" / "cycle_00" / "checkpoint_last.pth"
    run = torchrun("-c", config, "--run-id", "asked", *LONG)
    wait_for(last, run)
    assert "another process of this run" not in end(run, signal.SIGTERM)
    assert not list(last.parent.glob(".*partial"))
    # The random states of both.
    assert len(torch.load(last)["random"]["others"]) == 1


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_averaged_weights_go_on_as_unbroken(
    config: Path, torchrun: Callable[..., subprocess.Popen[str]]
) -> None:
    """`trainer.ema` with a model that every process keeps, gone on with in as many of them."""
    keys = ("trainer.ema=true", "al_settings.num_cycles=0", "trainer.checkpoint_seconds=0.000001")
    keys += SUPERVISED[1:]
    # So many that the signal comes before the last one.
    keys += ("trainer.steps_per_cycle=30",)
    words = ("-c", config, *(word for key in keys for word in ("--set", key)))
    whole = torchrun(*words, "--run-id", "whole")
    assert whole.wait() == 0, whole.communicate()[0]
    parts = torchrun(*words, "--run-id", "parts")
    folder = config.parent / "runs" / "tiny" / "parts"
    wait_for(folder / "cycle_00" / "checkpoint_last.pth", parts)
    text = end(parts, signal.SIGKILL)
    assert text.count("error: another process of this run was killed") == 1
    assert not (folder / "cycle_00" / "training.json").exists(), "killed too late to show anything"
    again = torchrun("--resume", folder)
    assert again.wait() == 0, again.communicate()[0]
    assert_same_run(folder.with_name("whole"), folder)


@pytest.mark.slow
def test_an_error_of_one_process_is_told_once(
    config: Path, torchrun: Callable[..., subprocess.Popen[str]]
) -> None:
    """An image is damaged, which one of them reads in each epoch."""
    settings = json.loads(config.read_text())
    root = make_voc(config.parent / "damaged")
    settings["dataset"]["args"]["root"] = str(root)
    run_folder = config.parent / "runs" / "tiny" / "damaged"
    words = ("-c", write_config(config.parent / "damaged.json", settings), "--run-id", "damaged")
    run = torchrun(*words, *LONG)
    wait_for(run_folder / "cycle_00" / "checkpoint_last.pth", run)
    image_id = read_json(run_folder / "cycle_00" / "pool.json")["labelled"][-1]
    path = root / "JPEGImages" / f"{image_id}.jpg"
    path.write_bytes(path.read_bytes()[:300])
    text, _ = run.communicate(timeout=60)
    assert run.returncode != 0
    (told,) = re.findall(r"^error.*", text, re.MULTILINE)
    assert str(path) in told
