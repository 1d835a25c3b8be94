"""The training loop, on the detector of one weight (see `slope`)."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from slope import scripted, steps_of, trainer_of
from tiny import make_voc, quick_config, run_train, tiny_config, write_config

from med_sslal.base.base_trainer import BaseTrainer, Hook
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.training_step import StepOutcome
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import Interrupted


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
    # Apart, and unweighted: the darker images.
    last = trainer.history[-1]
    parts = [value for name, value in last.items() if name.endswith("loss_classifier")]
    assert parts[1:] == [pytest.approx(parts[0] / 2)] * bool(n_pseudo) and parts[0]


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
    told = []
    for every in (1, 100):
        trainer, _ = trainer_of(tmp_path, brightness=brightness)
        trainer.loss_check_steps = every
        words = r"the loss is \S+ at step \d .*image5.*loss_classifier"
        with pytest.raises(UserError, match=words) as caught:
            trainer.train()
        told.append((str(caught.value), trainer.step))
    assert told[0][0] == told[1][0] and told[0][1] < told[1][1], "it was looked at later"
    assert not list(tmp_path.glob("*.pth")), "no model that has seen it is kept"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """Nor is the training over with them: every loss was finite."""
    trainer, model = trainer_of(tmp_path, lr=3e38, steps_per_cycle=2)
    with pytest.raises(UserError, match=r"the weights are not finite after step 2 \(w\).*lower"):
        trainer.train()
    assert model.w.isinf() and not list(tmp_path.glob("*.pth"))


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
