import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from config_samples import FULL, REGISTRIES, FasterRCNN, full, paths, problems, with_set

from med_sslal.cli.registries import registries
from med_sslal.config.jsonc import parse
from med_sslal.config.overrides import Override, parse_set
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.config.show import help_config, print_config
from med_sslal.config.torch_types import optimizers
from med_sslal.utils.errors import ConfigError

ROOT = Path(__file__).parents[1]


def test_full_config_is_valid_and_resolves(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(FULL)
    config = ConfigParser.from_file(path, REGISTRIES)
    assert config["trainer"]["epochs"] == 50 == config.get("trainer.epochs")
    assert config.get("dataset.args.root") == "data//x"
    assert config.get("trainer.precision") == "fp32"
    assert config.get("arch.args.anchor_sizes") == [[16], [32]]
    assert config.get("augmentation") == {"type": "TrainTransform", "args": {"mirror": True}}
    assert list(tmp_path.iterdir()) == [path]
    given = full()
    assert all(path in paths(config.resolved) for path in paths(given))


def test_required_keys_alone_are_enough() -> None:
    config = ConfigParser(
        {
            "name": "x",
            "arch": {"type": "FasterRCNN", "args": {"num_classes": 2}},
            "dataset": {"type": "DeepLesion", "args": {"root": "."}},
            "optimizer": {"type": "SGD"},
            "al_settings": {
                "num_cycles": 0,
                "type": "ActiveLearningHelper",
                "args": {"init_num": 1, "budget_num": 1, "al_criterion": ["entropy"]},
            },
        },
        REGISTRIES,
    )
    assert config["lr_scheduler"] is None
    assert config["ssl_settings"]["include_pseudolabels"] is False


def test_resolved_config_and_printed_config_mean_the_same(tmp_path: Path) -> None:
    config = with_set("trainer.epochs=7", "arch.args.weights_dir=w")
    again = ConfigParser(json.loads(json.dumps(config.resolved)), REGISTRIES)
    printed = tmp_path / "printed.json"
    printed.write_text(print_config(config))
    assert again.digest() == config.digest()
    assert ConfigParser.from_file(printed, REGISTRIES).digest() == config.digest()
    assert with_set("trainer.epochs=8").digest() != config.digest()
    assert ("trainer.epochs", 7, 50) in config.differences()
    assert ("dataset.args.lesion_type", "lung", "all") in config.differences()
    assert '"epochs": 7,  // default 50' in print_config(config)


def test_changing_what_was_read_does_not_change_the_config() -> None:
    config = with_set()
    config["trainer"]["epochs"] = 1
    config.resolved["trainer"]["epochs"] = 1
    assert config.get("trainer.epochs") == 50


def shipped_equals(config: dict[str, Any]) -> None:
    expected = full()
    expected["name"] = "frcnn_med_alssl"
    expected["dataset"]["args"]["root"] = "data/DeepLesion"
    assert config == expected


def test_shipped_config_has_every_value_of_the_full_experiment() -> None:
    path = ROOT / "configs" / "deeplesion_lung.json"
    config = parse(path.read_text(), "shipped").value
    # The default would hide faint lesions in this window.
    strong = {"type": "StrongTransform", "args": {"noise": 0.005}}
    assert config.pop("pseudo_augmentation") == strong
    # As long as its training: a shorter cosine rises again.
    cosine = config["lr_scheduler"]["args"]
    assert cosine["T_max"] == config["trainer"]["epochs"]
    cosine["T_max"] = full()["lr_scheduler"]["args"]["T_max"]
    # Its strategy is the one that beat random (docs/studies.md), with the patients spread.
    strategy = config["al_settings"]["args"]
    assert strategy.pop("spread_groups") is True
    assert strategy["al_criterion"] == [["box_self_consistency", "entropy"], "k_means_diversity"]
    strategy["al_criterion"] = full()["al_settings"]["args"]["al_criterion"]
    shipped_equals(config)
    ConfigParser.from_file(path, registries())


@pytest.mark.skipif("MED_SSLAL_TEST_DATA" not in os.environ, reason="MED_SSLAL_TEST_DATA not set")
def test_sample_is_valid_as_it_stands() -> None:
    path = Path(os.environ["MED_SSLAL_TEST_DATA"]).parent / "config_sample.jsonc"
    if not path.is_file():
        pytest.skip(f"no {path.name} beside the test data")
    shipped_equals(parse(path.read_text(), "sample").value)
    ConfigParser.from_file(path, REGISTRIES)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("a.b=3", ("a", "b"), 3),
        ("a=b=c", ("a",), "b=c"),
        ('a="3"', ("a",), "3"),
        ("a=[1, 2]", ("a",), [1, 2]),
        ("a=null", ("a",), None),
        ("a=", ("a",), ""),
        ("a=NaN", ("a",), "NaN"),
        ("a=1e999", ("a",), "1e999"),
        ("a=__import__('os')", ("a",), "__import__('os')"),
    ],
)
def test_set_splits_once_and_never_evaluates(text: str, path: tuple[str, ...], value: Any) -> None:
    assert parse_set(text) == Override("--set", path, value)


@pytest.mark.parametrize("text", ["trainer.epochs", "=3", "trainer..epochs=3"])
def test_set_without_key_or_value(text: str) -> None:
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        parse_set(text)


def test_set_reaches_every_kind_of_key() -> None:
    config = with_set(
        "optimizer.args.lr=1", "lr_scheduler=null", "trainer.precision=bf16", "seed=1", "seed=2"
    )
    assert config.get("optimizer.args.lr") == 1
    assert config["lr_scheduler"] is None
    assert config.get("trainer.precision") == "bf16"
    assert config["seed"] == 2


def test_set_makes_an_absent_section() -> None:
    given = {name: value for name, value in full().items() if name != "lr_scheduler"}
    settings = ["lr_scheduler.type=StepLR", "lr_scheduler.args.step_size=2"]
    config = ConfigParser(given, REGISTRIES, map(parse_set, settings))
    assert config["lr_scheduler"]["args"] == {"step_size": 2}
    assert "lr_scheduler" not in given


def test_init_obj_gives_the_constructor_its_types() -> None:
    config = with_set("arch.args.anchor_sizes=[[8], [16, 32]]", "arch.args.weights_dir=w")
    built = config.init_obj("arch")
    assert built.values == (2, "resnet50", True, True, ((8,), (16, 32)), Path("w"))
    assert config.init_class("arch") is FasterRCNN
    assert with_set().init_obj("arch").values[4] == ((16,), (32,))
    assert with_set("dataset.args.window=[0, 1]").init_obj("dataset").values[4] == (0.0, 1.0)


def test_arguments_handed_on_to_a_base_are_checked(tmp_path: Path) -> None:
    built = with_set("dataset.type=DeepLesionPhantom", "dataset.args.patients=3")
    assert built.init_obj("dataset").patients == 3
    lines = problems(FULL, tmp_path, "dataset.type=DeepLesionPhantom", "dataset.args.windw=[0, 1]")
    assert "Did you mean 'window'" in lines[0]


def test_dotted_path_names_a_users_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "class Net:\n    def __init__(self, num_classes: int, depth: int = 1):\n"
        "        self.depth = depth\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = ["arch.type=my_nets.Net", 'arch.args={"num_classes": 2, "depth": 3}']
    assert with_set(*settings).init_obj("arch").depth == 3
    lines = problems(FULL, tmp_path, *settings, "arch.args.depth=deep")
    assert lines == ['--set arch.args.depth: found the string "deep"; allowed: integer']


@pytest.mark.parametrize("name", optimizers())
def test_every_optimizer_builds_and_steps(name: str) -> None:
    import torch

    config = with_set(f'optimizer={{"type": "{name}"}}')
    weight = torch.nn.Parameter(torch.ones(2, 3, 1, 1))
    optimizer = config.init_obj("optimizer", [weight])
    config.init_obj("lr_scheduler", optimizer)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert not torch.equal(weight.detach(), torch.ones(2, 3, 1, 1))


def test_help_config_tells_type_default_and_meaning() -> None:
    text = help_config(REGISTRIES)
    assert "trainer.epochs (integer, 1 or more; default 50)\n    passes over" in text
    assert "num_classes (integer; required)\n        With background." in text
    assert "Labels before the first query." in text
    assert "T_max (integer; required)\n        Maximum number of iterations" in text
    assert "al_settings.args of ActiveLearningHelper" in text
    assert "    seed (" not in text and "    params (" not in text


@pytest.mark.parametrize(
    ("setting", "verdict"),
    [
        ("trainer.epochs=60", "free"),
        ("trainer.epochs=40", "refused"),
        ("al_settings.num_cycles=4", "free"),
        ("trainer.steps_per_cycle=10", "refused"),
        ("n_workers=0", "free"),
        ("trainer.verbosity=0", "free"),
        ("trainer.save_period=1", "free"),
        ("n_gpu=0", "warned"),
        ("deterministic=true", "warned"),
        ("optimizer.args.lr=1", "warned"),
        ("batch_size=8", "warned"),
        ("augmentation.args.mirror=false", "warned"),
        ("ssl_settings.args.threshold=0.5", "warned"),
        ("seed=1", "refused"),
        ("dataset.args.eval_split=0.3", "refused"),
        ("dataset.args.lesion_type=liver", "refused"),
        ("arch.args.num_classes=3", "refused"),
        ("arch.args.backbone_name=resnet18", "refused"),
        ("al_settings.args.budget_num=1", "refused"),
        ("al_settings.args.init_num=1", "refused"),
        ('al_settings.args.al_criterion=["entropy"]', "refused"),
        ("ssl_settings.include_pseudolabels=false", "refused"),
        ("image_size=256", "refused"),
        ("lr_scheduler=null", "refused"),
    ],
)
def test_resume_policy(setting: str, verdict: str) -> None:
    old, new = with_set().resolved, with_set(setting).resolved
    changes = dict(zip(("free", "warned", "refused"), compare_for_resume(old, new), strict=True))
    assert [name for name, found in changes.items() if found] == [verdict]
    assert compare_for_resume(old, old) == ([], [], [])


def test_config_is_read_without_torch() -> None:
    code = (
        "import sys, med_sslal.config.parse_config, med_sslal.config.show, med_sslal.cli.args;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
