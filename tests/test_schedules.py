"""Schedules of the learning rate, on the detector of one weight (see `slope`)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same_run import same
from slope import Slope, StopAt, scripted, steps_of, trainer_of
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
)

from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.learning_rate import ConstantThenCosine, tail_start
from med_sslal.cli.registries import registries
from med_sslal.config.torch_types import optimizers
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.interrupt import Interrupted, StopRequest


def rates(scheduler: Callable[[Any], Any], lr: float, moves: int) -> list[float]:
    """The rates that torch's own loop gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, found = scheduler(optimizer), []
    for _ in range(moves):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warm_up_rises_linearly_and_leaves_the_schedule_alone(tmp_path: Path) -> None:
    trainer, model = trainer_of(tmp_path, warmup_steps=4)
    trainer.train()
    assert steps_of(model) == pytest.approx([0.0625, 0.125, 0.1875, 0.25, *[0.25] * 4])
    assert [values["lr"] for values in trainer.history] == [0.25, 0.25]


def test_a_schedule_by_step(tmp_path: Path) -> None:
    def one_cycle(optimizer: Any) -> OneCycleLR:
        return OneCycleLR(optimizer, max_lr=0.25, total_steps=8, cycle_momentum=False)

    trainer, model = trainer_of(tmp_path, scheduler=one_cycle, lr_interval="step")
    trainer.train()
    assert steps_of(model) == pytest.approx(rates(one_cycle, 0.25, 8), abs=1e-6)


def test_a_schedule_by_epoch(tmp_path: Path) -> None:
    def cosine(optimizer: Any) -> CosineAnnealingLR:
        return CosineAnnealingLR(optimizer, T_max=3)

    trainer, model = trainer_of(tmp_path, scheduler=cosine, epochs=3)
    trainer.train()
    wanted = [rate for rate in rates(cosine, 0.25, 3) for _ in range(4)]
    assert steps_of(model) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "tail", "total", "falls"),
    [
        ({"epochs": 5}, 0.2, 20, 4),
        ({"steps_per_cycle": 10}, 0.5, 10, 5),
        ({"epochs": 1}, 1.0, 4, 4),
        ({"epochs": 2}, 0.0, 8, 0),
        ({"epochs": 2, "warmup_steps": 4}, 0.25, 8, 2),
    ],
    ids=str,
)
def test_constant_then_cosine_over_the_real_length(
    tmp_path: Path, settings: dict[str, int], tail: float, total: int, falls: int
) -> None:
    trainer, model = trainer_of(
        tmp_path,
        scheduler=lambda optimizer: ConstantThenCosine(optimizer, tail=tail, minimum=0.1),
        lr_interval="step",
        **settings,
    )
    trainer.train()
    assert tail_start(total, tail) == total - falls
    rise = [(n + 1) / 4 for n in range(settings.get("warmup_steps", 0))]
    wave = [0.1 + 0.45 * (1 + math.cos(math.pi * n / falls)) for n in range(falls)]
    wanted = [*rise, *[1.0] * (total - falls - len(rise)), *wave]
    assert steps_of(model) == pytest.approx([0.25 * share for share in wanted], abs=1e-6)
    assert trainer.optimisation.lr == pytest.approx(0.025 if falls else 0.25)


def test_a_longer_training_has_its_tail_at_its_own_end(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int) -> list[float]:
        trainer, model = trainer_of(
            folder, scheduler=ConstantThenCosine, lr_interval="step", epochs=epochs
        )
        trainer.resume()
        trainer.train()
        return steps_of(model)

    run(tmp_path / "parts", 3)
    assert run(tmp_path / "parts", 5) == run(tmp_path / "whole", 5)[12:]


def test_reduce_on_plateau_follows_the_validation(tmp_path: Path) -> None:
    trainer, _ = trainer_of(
        tmp_path,
        epochs=6,
        monitor="min val_loss",
        evaluate=scripted([3, 2, 2, 2, 2, 2]),
        scheduler=lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.5, patience=1),
    )
    trainer.train()
    assert [values["lr"] for values in trainer.history] == [0.25] * 4 + [0.125] * 2


ARGUMENTS: dict[str, dict[str, Any]] = {
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 3, "cycle_momentum": False},
    "OneCycleLR": {"max_lr": 0.25, "total_steps": 13, "cycle_momentum": False},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "ConstantLR": {"total_iters": 2},
    "ConstantThenCosine": {"tail": 0.6},
    "ExponentialLR": {"gamma": 0.7},
    "LinearLR": {"total_iters": 3},
    "MultiStepLR": {"milestones": [1, 2, 7]},
    "PolynomialLR": {"total_iters": 4},
    "ReduceLROnPlateau": {"patience": 0},
    "StepLR": {"step_size": 2},
}


SCHEDULERS = registries()["lr_scheduler"]


EVERY = [("SGD", name, "epoch") for name in SCHEDULERS if name != "ConstantThenCosine"]


EVERY += [("SGD", name, "step") for name in SCHEDULERS if name != "ReduceLROnPlateau"]


EVERY += [(name, "StepLR", "epoch") for name in optimizers() if name != "SGD"]


@pytest.mark.parametrize(("optimizer", "scheduler", "interval"), EVERY)
def test_every_optimizer_and_schedule_resumes_to_the_bit(
    tmp_path: Path, optimizer: str, scheduler: str, interval: str
) -> None:
    def run(folder: Path, stop: StopRequest | None = None) -> tuple[Trainer, Slope]:
        trainer, model = trainer_of(
            folder,
            brightness=[0.1, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 1.0],
            optimizer=optimizers()[optimizer],
            scheduler=lambda built: SCHEDULERS[scheduler](built, **ARGUMENTS[scheduler]),
            lr_interval=interval,
            monitor="min val_loss",
            evaluate=scripted([3, 1, 2]),
            epochs=3,
            stop=stop,
        )
        trainer.resume()
        return trainer, model

    whole, model = run(tmp_path / "whole")
    whole.train()
    seen: list[float] = []
    for checks in (3, 2, 1, 4):
        trainer, part = run(tmp_path / "parts", StopAt(checks))
        with pytest.raises(Interrupted):
            trainer.train()
        seen += part.seen
    trainer, part = run(tmp_path / "parts")
    trainer.train()
    assert [*seen, *part.seen] == model.seen and part.w.item() == model.w.item()
    assert trainer.history == whole.history
    states = [
        load_checkpoint(tmp_path / name / "checkpoint_last.pth") for name in ("whole", "parts")
    ]
    for content in states:
        del content["seconds"]
    assert same(*states)


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(None, id="constant"),
        pytest.param(lambda built: ExponentialLR(built, 0.5), id="ExponentialLR"),
        pytest.param(lambda built: CosineAnnealingLR(built, 4), id="CosineAnnealingLR"),
        pytest.param(lambda built: ReduceLROnPlateau(built, patience=0), id="ReduceLROnPlateau"),
    ],
)
def test_a_new_learning_rate_is_used_at_its_place_of_the_schedule(
    tmp_path: Path, scheduler: Callable[[Any], Any] | None
) -> None:
    options: dict[str, Any] = {"epochs": 4, "scheduler": scheduler, "monitor": "min val_loss"}
    trainer, _ = trainer_of(tmp_path, lr=0.25, stop=StopAt(7), **options)
    with pytest.raises(Interrupted):
        trainer.train()
    trainer, resumed = trainer_of(tmp_path, lr=0.5, **options)
    trainer.resume()
    trainer.train()
    whole, fresh = trainer_of(tmp_path / "fresh", lr=0.5, **options)
    whole.train()
    assert steps_of(resumed) == pytest.approx(steps_of(fresh)[6:], abs=1e-6)
