"""Exchangeable steps, averaged weights, and trainings that go on with batches of another size."""

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import blocks
from same_run import assert_same_run, same
from slope import Flat, StopAt
from tiny import make_voc, quick_config, run_train, small_config, tiny_config, write_config
from torch import Tensor, nn
from trainings import settings_of, training_of

from med_sslal.base.base_model import BaseModel
from med_sslal.base.checkpoint import load_checkpoint
from med_sslal.base.types import Annotation, Frame, ImageInfo, ModelOutput, Target
from med_sslal.base.views import into_view
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.trainer.trainer import Trainer
from med_sslal.utils.errors import ConfigError
from med_sslal.utils.interrupt import Interrupted, StopRequest
from med_sslal.utils.util import read_json

ROOT = Path(__file__).parents[1]
BRIGHTNESS = [0.1, 0.3, 0.4, 0.5, 0.7, 0.8, 0.9, 1.0]


class Counting(BaseModel):
    """A weight, and a buffer of each kind: the brightness last seen, and how often it saw any."""

    num_classes = 2
    seen: Tensor
    times: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("times", torch.zeros((), dtype=torch.long))
        self.past: list[dict[str, Tensor]] = []

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        assert isinstance(images, Tensor)
        if self.times:
            self.past.append({k: v.clone() for k, v in self.state_dict().items()})
        brightness = images.mean((1, 2, 3))
        self.seen.copy_(brightness.mean())
        self.times += 1
        return ModelOutput({"loss": brightness * self.w.pow(2).sum()}, [])


def counting(folder: Path, *, stop: StopRequest | None = None, **more: Any) -> Trainer:
    """A training of 8 images with averaged weights."""
    model, batch_size = Counting(), more.pop("batch_size", 2)
    data = Flat(BRIGHTNESS)
    return training_of(
        folder,
        model,
        data,
        data.splits["train"],
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        settings_of(**{"epochs": 6, "ema": True, **more}),
        labels=dict.fromkeys(data.infos, Annotation.empty()),
        class_names=("thing",),
        side=32,
        batch_size=batch_size,
        stop=stop,
    )


def test_the_average_is_the_formula(tmp_path: Path) -> None:
    trainer = counting(tmp_path)
    trainer.train()
    model: Any = trainer.optimisation.model
    past = [*model.past, model.state_dict()]
    assert len(past) == trainer.step == 24
    # An epoch of 4 steps is longer than 2 % of 24.
    most = 1 - math.log(2) / 4
    average = {name: past[0][name].double() for name in ("w", "seen")}
    for t, now in enumerate(past[1:], 1):
        decay = min(most, (1 + t) / (10 + t))
        for name, value in average.items():
            average[name] = decay * value + (1 - decay) * now[name].double()
    kept = load_checkpoint(tmp_path / "model_best.pth")["model"]
    assert kept.keys() == model.state_dict().keys()
    for name, value in average.items():
        torch.testing.assert_close(kept[name].double(), value, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(kept[name], past[-1][name])
    assert kept["times"] == past[-1]["times"] == 24


@pytest.mark.parametrize(
    ("settings", "half_life"),
    [({"epochs": 6}, 4), ({"epochs": 100}, 8), ({"steps_per_cycle": 1000}, 20)],
    ids=str,
)
def test_half_life_is_an_epoch_or_two_per_cent(settings: dict[str, int], half_life: int) -> None:
    assert settings_of(**settings).half_life(4) == half_life


def test_an_average_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = counting(tmp_path / "whole")
    whole.train()
    for checks in (3, 2, 1, 7):
        trainer = counting(tmp_path / "parts", stop=StopAt(checks))
        trainer.resume()
        with pytest.raises(Interrupted):
            trainer.train()
    trainer = counting(tmp_path / "parts")
    trainer.resume()
    trainer.train()
    for name in ("checkpoint_last.pth", "model_best.pth"):
        contents = [load_checkpoint(tmp_path / run / name) for run in ("whole", "parts")]
        for content in contents:
            del content["seconds"]
        assert same(*contents), name


@pytest.mark.parametrize("checks", [2, 4, 6, 9])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 8, 16])
def test_a_stop_within_an_epoch_and_batches_of_another_size(
    tmp_path: Path, batch_size: int, checks: int
) -> None:
    """The epochs stay as many, and the steps are those that were done."""
    first = counting(tmp_path, stop=StopAt(checks))
    with pytest.raises(Interrupted):
        first.train()
    assert first.step == checks - 1
    rest = counting(tmp_path, batch_size=batch_size)
    rest.resume()
    rest.train()
    batches = len(rest.history) and math.ceil(8 / batch_size) - (8 % batch_size == 1)
    done, within = divmod(first.step, 4)
    left = batches - within * batches // 4 + (5 - done) * batches
    assert rest.step == first.step + left == rest.history[-1]["step"]
    assert rest.epoch == len(rest.history) == 6
    model: Any = rest.optimisation.model
    assert len(model.past) == left


def test_steps_per_cycle_are_kept_with_batches_of_another_size(tmp_path: Path) -> None:
    first = counting(tmp_path, steps_per_cycle=10, stop=StopAt(7))
    with pytest.raises(Interrupted):
        first.train()
    rest = counting(tmp_path, steps_per_cycle=10, batch_size=8)
    rest.resume()
    rest.train()
    # 6 steps were one epoch and a half; the second one is begun again.
    assert rest.step == 10 and [values["step"] for values in rest.history] == [4, 7, 8, 9, 10]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training of 12 images, three batches an epoch; a position is saved after each."""
    folder = tmp_path_factory.mktemp("steps")
    settings = quick_config(make_voc(folder / "voc"), folder / "runs")
    settings["al_settings"] |= {"num_cycles": 0}
    settings["al_settings"]["args"]["init_num"] = 12
    # With buffers of both kinds.
    settings["arch"]["args"]["norm"] = "batch"
    settings["ssl_settings"] = {}
    settings["trainer"] |= {"checkpoint_seconds": 1e-6, "ema": True}
    return write_config(folder / "config.json", settings)


def killed_at(number: int, *words: str | Path) -> None:
    """`python train.py WORDS`, ended at its n-th look for a stop: nothing is saved after that."""
    count = iter(range(number - 1, -1, -1))

    def check(self: StopRequest) -> None:
        if next(count) == 0:
            raise MemoryError("the power is gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StopRequest, "check", check)
        with pytest.raises(MemoryError):
            run_train(*words)


@pytest.mark.slow
def test_a_killed_run_with_averaged_weights_goes_on_to_the_bit(config: Path) -> None:
    runs = config.parent / "runs" / "tiny"
    assert run_train("-c", config, "--run-id", "whole") == 0
    killed_at(2, "-c", config, "--run-id", "parts")
    last = load_checkpoint(runs / "parts" / "cycle_00" / "checkpoint_last.pth")
    assert (last["epoch"], last["batch"]) == (0, 1)
    assert not same(last["model"], last["state"]["optimisation"]["weights"]) or last["step"] == 1
    assert run_train("--resume", runs / "parts") == 0
    assert_same_run(runs / "whole", runs / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--bs", "12"), ("--set", "trainer.accumulate=4")], ids=str)
def test_a_run_goes_on_with_larger_batches(config: Path, words: tuple[str, ...]) -> None:
    name = "larger" + words[0].strip("-")
    killed_at(3, "-c", config, "--run-id", name)
    run = config.parent / "runs" / "tiny" / name
    assert run_train("--resume", run, *words) == 0
    # Two batches of three were done: the single one of this epoch is begun again.
    assert read_json(run / "cycle_00" / "training.json")["steps"] == 2 + 2


OWN = """
from med_sslal.base.training_step import TrainingStep
from med_sslal.trainer.supervised_step import SupervisedStep


class NoStep:
    pass


class Fine(SupervisedStep):
    pass


class WrongView(SupervisedStep):
    views = ("sideways",)
"""


@pytest.fixture
def own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own_steps.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_steps", None)


@pytest.mark.parametrize(
    ("name", "pseudo", "sentence"),
    [
        ("Fine", False, 'trainer.type: found the string "Fine"; allowed: string: a dotted path'),
        ("own_steps.Nothing", False, "trainer.type: module 'own_steps' has no class 'Nothing'"),
        ("no_module.Step", False, "trainer.type: cannot import 'no_module' for 'no_module.Step'"),
        (
            "own_steps.NoStep",
            False,
            "trainer.type: own_steps.NoStep must be a subclass of med_ssla",
        ),
        ("own_steps.Fine", True, "trainer.type: a training step of your own and ssl_settings.incl"),
    ],
)
def test_a_wrong_step_is_found_in_the_config(
    own_steps: None, tmp_path: Path, name: str, pseudo: bool, sentence: str
) -> None:
    config = tiny_config(tmp_path, tmp_path)
    config["trainer"]["type"] = name
    config["ssl_settings"] = {"include_pseudolabels": pseudo}
    with pytest.raises(ConfigError) as caught:
        ConfigParser(config, registries())
    assert sentence in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("own_steps.WrongView", "asks for the view 'sideways'; there are weak, strong"),
        ("med_sslal.trainer.teacher_step.TeacherStep", "missing a required argument: 'teacher'"),
    ],
)
def test_a_step_that_cannot_be_made_is_refused(
    own_steps: None, tmp_path: Path, config: Path, name: str, sentence: str, capsys: Any
) -> None:
    words = ("--set", f"trainer.type={name}", "--set", f"trainer.save_dir={tmp_path / 'runs'}")
    assert run_train("-c", config, *words) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_boxes_of_the_file_come_into_a_view_and_are_cut_there() -> None:
    """A view that is mirrored, half as large, and moved by 3."""
    matrix = torch.tensor([[-2.0, 0.0, 60.0], [0.0, 2.0, -6.0]])
    frame = Frame(ImageInfo("a", "a", "a", (64, 64)), matrix)
    boxes = torch.tensor([[10.0, 4, 20, 14], [50, 0, 70, 90], [55, 0, 70, 90], [40, 0, 43, 9]])
    found, seen = into_view(boxes, frame, (32, 32))
    assert found.tolist() == [[20, 5, 25, 10], [0, 3, 5, 32], [0, 3, 2.5, 32], [8.5, 3, 10, 7.5]]
    # Of the second 68 % are hidden and of the third 79 %, and the last is 1.5 pixels wide.
    assert seen.tolist() == [True, True, False, False]
    nothing, none = into_view(torch.zeros(0, 4), frame, (32, 32))
    assert nothing.shape == (0, 4) and none.shape == (0,)


@pytest.mark.slow
def test_the_step_of_the_page_goes_on_to_the_bit(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a state of its own, and views of unlabelled images; it is killed in mid-epoch."""
    (code,) = blocks(ROOT / "docs" / "add_training_step.md", "python")
    (tmp_path / "lab_step.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    settings = small_config(make_voc(tmp_path / "voc"), tmp_path / "runs")
    settings["ssl_settings"] = {}
    settings["trainer"] |= {"type": "lab_step.MeanTeacher", "epochs": 3}
    settings["trainer"] |= {"checkpoint_seconds": 1e-6}
    settings["al_settings"]["num_cycles"] = 0
    path = write_config(tmp_path / "config.json", settings)
    runs = tmp_path / "runs" / "tiny"
    assert run_train("-c", path, "--run-id", "whole") == 0
    last = load_checkpoint(runs / "whole" / "cycle_00" / "checkpoint_last.pth")
    assert any(name.startswith("module.") for name in last["state"]["training_step"])
    # 6 labelled images are two batches; a validation of 6 images takes two looks as well.
    killed_at(6, "-c", path, "--run-id", "parts")
    cut = load_checkpoint(runs / "parts" / "cycle_00" / "checkpoint_last.pth")
    assert (cut["epoch"], cut["batch"]) == (1, 1)
    assert run_train("--resume", runs / "parts") == 0
    assert_same_run(runs / "whole", runs / "parts")
    sys.modules.pop("lab_step", None)
