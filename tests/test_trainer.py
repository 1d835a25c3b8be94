"""The training loop, on a detector of one weight whose gradient is known: w falls by the rate.

The loss of an image is w times its brightness, so after a step of plain SGD on images of brightness
1, w has fallen by exactly the learning rate of that step.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_voc, quick_config, run_train, tiny_config, write_config
from torch import Tensor, nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
)
from trainings import settings_of, training_of

from med_sslal.base.base_dataset import Images
from med_sslal.base.base_model import BaseModel
from med_sslal.base.base_trainer import BaseTrainer, Hook
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.learning_rate import ConstantThenCosine, tail_start
from med_sslal.base.training_step import StepOutcome
from med_sslal.base.types import Annotation, Frame, ImageInfo, ModelOutput, Target
from med_sslal.cli.registries import registries
from med_sslal.config.torch_types import optimizers
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import Interrupted, StopRequest


class Flat(Images):
    """Pictures of one brightness each."""

    def __init__(self, brightness: Sequence[float]) -> None:
        names = [f"image{number}" for number in range(len(brightness))]
        self.brightness = dict(zip(names, brightness, strict=True))
        infos = {name: ImageInfo(name, name, name, (32, 32)) for name in names}
        super().__init__(infos, {"train": tuple(names), "val": (), "test": ()})

    def read(self, image_id: str) -> np.ndarray:
        return np.full((32, 32, 3), self.brightness[image_id], dtype=np.float32)


class Slope(BaseModel):
    """One weight; remembers it, and the images' brightness, at each forward pass.

    Where asked to, it finds one box of "thing" in every image and one of "bright" in bright ones,
    of a quality that equals the brightness.
    """

    num_classes = 4

    def __init__(self, graded: bool = True) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.seen: list[float] = []
        self.shown: list[list[float]] = []
        self.graded = graded

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        assert isinstance(images, Tensor)
        self.seen.append(self.w.item())
        brightness = images.mean((1, 2, 3))
        self.shown.append(brightness.tolist())
        loss = self.w * brightness
        quality = None
        if self.graded:
            one, bright = torch.ones_like(brightness), (brightness > 0.5).float()
            counts = torch.stack([one, bright, 0 * one], 1)
            quality = torch.stack([counts * brightness[:, None], counts], 2)
        return ModelOutput({"loss_classifier": loss, "loss_box_reg": 0 * loss}, [], quality)


class StopAt(StopRequest):
    """A signal that comes at the n-th check."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(15)


def trainer_of(
    folder: Path,
    *,
    brightness: Sequence[float] = (1.0,) * 8,
    n_pseudo: int = 0,
    lr: float = 0.25,
    optimizer: type = torch.optim.SGD,
    scheduler: Callable[[Any], Any] | None = None,
    evaluate: Callable[[int], dict[str, float | None]] = lambda epoch: {"val_loss": 1.0},
    stop: StopRequest | None = None,
    graded: bool = True,
    batch_size: int = 2,
    **settings: Any,
) -> tuple[Trainer, Slope]:
    """A trainer over batches of two, and of two more that are pseudo-labelled."""
    data, model = Flat(brightness), Slope(graded)
    step_by = optimizer(model.parameters(), lr=lr)
    trainer = training_of(
        folder,
        model,
        data,
        data.splits["train"],
        step_by,
        settings_of(**{"epochs": 2, **settings}),
        labels=dict.fromkeys(data.infos, Annotation.empty()),
        side=32,
        batch_size=batch_size,
        n_pseudo=n_pseudo,
        scheduler=scheduler and scheduler(step_by),
        evaluate=evaluate,
        stop=stop,
        class_names=("thing", "bright", "never"),
    )
    return trainer, model


def steps_of(model: Slope) -> list[float]:
    """How far w fell in each step."""
    return (-np.diff([*model.seen, model.w.item()])).tolist()


def scripted(values: Sequence[float | None]) -> Callable[[int], dict[str, float | None]]:
    return lambda epoch: {"val_loss": values[epoch - 1]}


def rates(scheduler: Callable[[Any], Any], lr: float, moves: int) -> list[float]:
    """The rates that torch's own loop gives."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, found = scheduler(optimizer), []
    for _ in range(moves):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_constant_rate_and_history(tmp_path: Path) -> None:
    trainer, model = trainer_of(tmp_path, brightness=[1.0] * 6 + [0.5, 0.5])
    trainer.train()
    assert len(model.seen) == 8 and trainer.step == 8
    first = trainer.history[0]
    assert (first["epoch"], first["step"], first["lr"]) == (1, 4, 0.25)
    assert first["loss"] == pytest.approx(first["loss_classifier"])
    assert first["loss_box_reg"] == 0 and first["val_loss"] == 1


def test_gradient_clipping(tmp_path: Path) -> None:
    trainer, model = trainer_of(tmp_path, grad_clip=0.5)
    trainer.train()
    assert steps_of(model) == pytest.approx([0.125] * 8)


@pytest.mark.parametrize("n_pseudo", [0, 4])
def test_a_batch_in_parts_gives_the_steps_of_the_whole(tmp_path: Path, n_pseudo: int) -> None:
    """Brightnesses are powers of two, so that no rounding hides a difference."""
    brightness = [1.0, 0.5, 0.25, 1.0, 0.5, 2.0, 1.0, 0.5]
    found = []
    for parts in (1, 2):
        trainer, model = trainer_of(
            tmp_path / str(parts), brightness=brightness, n_pseudo=n_pseudo, accumulate=parts
        )
        trainer.train()
        size = 4 if n_pseudo else 2
        assert all(len(shown) == size // parts for shown in model.shown)
        found.append((model.seen[::parts], model.w.item(), trainer.history, trainer.model_facts()))
    assert found[0] == found[1]


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


@pytest.mark.parametrize(
    ("n_pseudo", "weight", "wanted"),
    [
        pytest.param(0, 1.0, [1.0] * 8, id="no pseudo-labels"),
        pytest.param(4, 1.0, [1.0, 1.125, 1.25, 1.375, *[1.5] * 16], id="a ramp of a fifth"),
        pytest.param(4, 2.0, [1.0, 1.25, 1.5, 1.75, *[2.0] * 16], id="weighted"),
        pytest.param(4, 0.0, [1.0] * 20, id="weight 0"),
        pytest.param(1, 2.0, [1.0, 1.25, 1.5, 1.75, *[2.0] * 16], id="one weighs as much as two"),
    ],
)
def test_weight_of_pseudo_labels(
    tmp_path: Path, n_pseudo: int, weight: float, wanted: list[float]
) -> None:
    brightness = [1.0] * (20 if n_pseudo else 8) + [0.5] * n_pseudo
    trainer, model = trainer_of(
        tmp_path, brightness=brightness, n_pseudo=n_pseudo, lr=1.0, pseudo_weight=weight
    )
    trainer.train()
    assert steps_of(model) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("rule", "values", "best"),
    [
        ("min val_loss", [3, 2, 4, 1, 5], 4),
        ("max val_loss", [3, 2, 4, 1, 5], 5),
        ("min val_loss", [2, 2, 2, 2, 2], 1),
        ("off", [3, 2, 4, 1, 5], 5),
        ("min val_loss", [None, None, 4, 1, 5], 4),
        ("min val_loss", [None] * 5, 5),
        ("min val_loss", [math.nan, 3, math.nan, 2, math.inf], 4),
        ("max val_loss", [math.nan] * 5, 5),
    ],
    ids=str,
)
def test_the_monitor_keeps_the_best_epoch(
    tmp_path: Path, rule: str, values: list[float | None], best: int
) -> None:
    trainer, model = trainer_of(tmp_path, epochs=5, monitor=rule, evaluate=scripted(values))
    trainer.train()
    kept = load_checkpoint(tmp_path / "model_best.pth")
    assert trainer.monitor.best_epoch == kept["epoch"] == best
    weights = [*model.seen, model.w.item()]
    assert kept["model"]["w"].item() == weights[4 * best]


def test_a_best_value_by_another_rule_is_forgotten(tmp_path: Path) -> None:
    values = {"evaluate": scripted([5, 6, 8, 7]), "early_stop": 1}
    first, _ = trainer_of(tmp_path, epochs=2, monitor="max val_loss", **values)
    first.train()
    again, _ = trainer_of(tmp_path, epochs=4, monitor="min val_loss", **values)
    again.resume()
    again.train()
    assert (again.monitor.best_epoch, again.monitor.best, again.epoch) == (4, 7, 4)


class Told(Hook):
    """Whether losses are known after each step."""

    def __init__(self) -> None:
        self.known: list[bool] = []

    def after_step(self, trainer: BaseTrainer, outcome: StepOutcome) -> None:
        self.known.append(bool(trainer.mean_losses()))


@pytest.mark.parametrize(("every", "known"), [(1, [1] * 4), (2, [0, 1, 1, 1]), (9, [0] * 4)])
def test_losses_are_looked_at_every_few_steps(tmp_path: Path, every: int, known: list[int]) -> None:
    """Each look waits for a GPU."""
    trainer, _ = trainer_of(tmp_path, epochs=1)
    told = Told()
    trainer.hooks, trainer.loss_check_steps = [*trainer.hooks, told], every
    assert trainer.train_epoch()["loss"] is not None
    assert told.known == known


@pytest.mark.parametrize(
    ("settings", "values", "epochs"),
    [
        pytest.param({"early_stop": 2}, [1, 2, 3, 4, 5, 6, 7, 8, 9], 3, id="two worse ones"),
        pytest.param({"early_stop": 2}, [9, 8, 7, 6, 5, 4, 3, 2, 1], 9, id="always better"),
        pytest.param({"early_stop": 0}, [1, 2, 3, 4, 5, 6, 7, 8, 9], 9, id="never"),
        pytest.param(
            {"early_stop": 2, "val_period": 3}, [0, 0, 1, 0, 0, 2, 0, 0, 0], 6, id="val_period"
        ),
        pytest.param(
            {"early_stop": 1, "val_period": 9}, [1] * 9, 9, id="not before the first validation"
        ),
        pytest.param(
            {"early_stop": 1, "val_steps": 36}, [1] * 9, 9, id="nor with val_steps in the way"
        ),
    ],
)
def test_early_stop_counts_validated_epochs(
    tmp_path: Path, settings: dict[str, int], values: list[float], epochs: int
) -> None:
    trainer, _ = trainer_of(
        tmp_path, epochs=9, monitor="min val_loss", evaluate=scripted(values), **settings
    )
    trainer.train()
    assert trainer.epoch == epochs
    assert (tmp_path / "model_best.pth").exists()


def test_a_monitored_value_that_is_not_measured(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, monitor="max val_AP50")
    with pytest.raises(UserError, match=r"no value 'val_AP50' among .*val_loss"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "validated"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"val_period": 2}, [2, 4, 5]),
        ({"val_steps": 6}, [2, 4, 5]),
        ({"val_steps": 4}, [1, 2, 3, 4, 5]),
        ({"val_steps": 1000}, [5]),
        ({"steps_per_cycle": 10, "val_steps": 5}, [2, 3]),
    ],
    ids=str,
)
def test_which_epochs_are_validated(
    tmp_path: Path, settings: dict[str, int], validated: list[int]
) -> None:
    trainer, _ = trainer_of(tmp_path, epochs=5, **settings)
    trainer.train()
    found = [values["epoch"] for values in trainer.history if "val_loss" in values]
    assert found == validated


@pytest.mark.parametrize(("steps", "epochs"), [(10, 3), (8, 2), (3, 1), (1, 1)])
def test_steps_per_cycle_cuts_the_last_epoch(tmp_path: Path, steps: int, epochs: int) -> None:
    trainer, model = trainer_of(tmp_path, steps_per_cycle=steps)
    trainer.train()
    assert len(model.seen) == steps == trainer.step == trainer.history[-1]["step"]
    assert len(trainer.history) == epochs
    last = model.seen[4 * (epochs - 1) :]
    assert trainer.history[-1]["loss"] == pytest.approx(sum(last) / len(last))


def test_numbered_checkpoints(tmp_path: Path) -> None:
    trainer, _ = trainer_of(tmp_path, epochs=5, save_period=2)
    trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint_epoch*.pth")) == [
        "checkpoint_epoch02.pth",
        "checkpoint_epoch04.pth",
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_images(tmp_path: Path, value: float) -> None:
    brightness = [1.0] * 8
    brightness[5] = value
    trainer, _ = trainer_of(tmp_path, brightness=brightness)
    with pytest.raises(UserError, match=r"the loss is \S+ at step \d .*image5.*loss_classifier"):
        trainer.train()
    assert not list(tmp_path.glob("*.pth")), "no model that has seen it is kept"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Nor is the training over with them: every loss was finite."""
    trainer, model = trainer_of(tmp_path, lr=3e38, steps_per_cycle=2)
    with pytest.raises(UserError, match=r"the weights are not finite after step 2 \(w\).*lower"):
        trainer.train()
    assert model.w.isinf() and not list(tmp_path.glob("*.pth"))


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


def same(first: Any, second: Any) -> bool:
    """Whether two nests of containers and tensors are equal to the bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def test_a_stop_within_the_validation_validates_that_epoch_again(tmp_path: Path) -> None:
    calls: list[int] = []

    def evaluate(epoch: int) -> dict[str, float | None]:
        calls.append(epoch)
        if len(calls) == 2:
            raise Interrupted(2)
        return {"val_loss": [5.0, 1.0, 3.0][epoch - 1]}

    options: dict[str, Any] = {"epochs": 3, "monitor": "min val_loss", "val_steps": 4}
    trainer, _ = trainer_of(tmp_path, evaluate=evaluate, **options)
    with pytest.raises(Interrupted):
        trainer.train()
    trainer, model = trainer_of(tmp_path, evaluate=evaluate, **options)
    trainer.resume()
    trainer.train()
    assert calls == [1, 2, 2, 3] and len(model.seen) == 4
    whole, _ = trainer_of(tmp_path / "whole", evaluate=scripted([5, 1, 3]), **options)
    whole.train()
    assert trainer.history == whole.history and trainer.monitor.best_epoch == 2


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


@pytest.fixture
def config(tmp_path: Path) -> Path:
    data = make_voc(tmp_path / "voc")
    return write_config(tmp_path / "config.json", quick_config(data, tmp_path / "runs"))


@pytest.mark.slow
def test_bf16_trains_and_differs_from_fp32(config: Path, tmp_path: Path) -> None:
    line = ["-c", config, "--set", "al_settings.num_cycles=0"]
    losses = {}
    for precision in ("fp32", "bf16"):
        words = [*line, "--set", f"trainer.precision={precision}", "--run-id", precision]
        assert run_train(*words) == 0
        path = tmp_path / "runs" / "tiny" / precision / "cycle_00" / "training.json"
        losses[precision] = [epoch["loss"] for epoch in json.loads(path.read_text())["history"]]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["FasterRCNN", "RetinaNet"])
def test_a_detector_learns_bright_rectangles(detector: str, tmp_path: Path) -> None:
    config = tiny_config(make_voc(tmp_path / "voc", 48), tmp_path / "runs")
    if detector == "RetinaNet":
        args = config["arch"]["args"]
        own = {name: args[name] for name in args if not name.startswith(("rpn_", "box_"))}
        config["arch"] = {"type": detector, "args": own}
        config["al_settings"]["args"]["al_criterion"] = ["entropy"]
    config["al_settings"] |= {"num_cycles": 0}
    config["al_settings"]["args"]["init_num"] = 20
    config["ssl_settings"]["include_pseudolabels"] = False
    config["lr_scheduler"] |= {"args": {"T_max": 90}, "interval": "step"}
    config["trainer"] |= {"steps_per_cycle": 90, "val_steps": 30, "monitor": "max val_AP50"}
    path = write_config(tmp_path / "config.json", config)
    assert run_train("-c", path, "--run-id", "x") == 0
    cycle = tmp_path / "runs" / "tiny" / "x" / "cycle_00"
    history = json.loads((cycle / "training.json").read_text())["history"]
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert json.loads((cycle / "metrics.json").read_text())["test"]["values"]["AP50"] > 0.4
