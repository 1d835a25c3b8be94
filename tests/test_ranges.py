"""Every number of a config, out of its range: told with its full key, before anything is read.

The ranges are read from the annotations, so a class that is added is walked too.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import config_samples
import pytest
import torch
from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MinLen
from tiny import files_of, quick_config, run_train, write_config

from med_sslal.al.al_criteria import CRITERIA, SELECTORS
from med_sslal.cli.registries import registries
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.schema import SCHEMA, TypeSection
from med_sslal.config.signature import signature
from med_sslal.config.values import Key, describe, fits
from med_sslal.utils.errors import ConfigError

REGISTRIES = registries()
TORCH = ("optimizer", "lr_scheduler")
# Numbers that may be any: why.
ANY = {
    "split_seed": "a seed enters a hash: every whole number is one",
    "seed": "likewise",
    "window": "HU may be any; that the lower one is first is no range of either",
    "windows": "likewise",
    "image_mean": "what is subtracted from a channel may be any",
}
REQUIRED: dict[str, Any] = {
    "num_classes": 2, "root": "nowhere", "annotations": "a.json", "init_num": 4, "budget_num": 4,
    "al_criterion": ["entropy"], "T_max": 5, "T_0": 5, "step_size": 2, "milestones": [2],
    "gamma": 0.5, "base_lr": 0.01, "max_lr": 0.1, "total_steps": 10,
}  # fmt: skip


def is_number(annotation: Any) -> bool:
    words = describe(annotation)
    return "integer" in words or "number" in words


def wrong_values(annotation: Any) -> Iterator[Any]:
    """Values at or just past each end of each range in an annotation, in its shape."""
    origin, inner = get_origin(annotation) or annotation, get_args(annotation)
    if origin is Annotated:
        yield from wrong_values(inner[0])
        for each in inner[1:]:
            for rule in each if isinstance(each, GroupedMetadata) else (each,):
                match rule:
                    case Ge(low):
                        yield low - 1
                    case Le(high):
                        yield high + 1
                    case Gt(end) | Lt(end):
                        yield end
                    case MinLen():
                        yield []
    elif origin is tuple and inner[-1] is not Ellipsis:
        for value in wrong_values(inner[0]):
            yield [value] * len(inner)
    elif origin in (tuple, list):
        yield from ([value] for value in wrong_values(inner[0]))
    else:
        for option in inner:
            if not isinstance(option, str | int):
                yield from wrong_values(option)


def numbers(cls: type, provided: tuple[str, ...]) -> list[Key]:
    return [
        key
        for key in signature(cls).arguments.values()
        if key.name not in provided and is_number(key.annotation) and key.name not in ANY
    ]


def is_ours(cls: type) -> bool:
    return cls.__module__.startswith("med_sslal.")


def shipped() -> Iterator[Any]:
    """Section, type, arguments, and what the program supplies itself, of every class of ours."""
    for section in SCHEMA:
        if not isinstance(section, TypeSection):
            continue
        for name, cls in REGISTRIES[section.path].items():
            if is_ours(cls):
                keys = numbers(cls, section.provided)
                yield pytest.param(section.path, name, keys, id=f"{section.path}-{name}")
    for stage, registry in (("criterion", CRITERIA), ("selector", SELECTORS)):
        for name, cls in registry.items():
            yield pytest.param(stage, name, numbers(cls, ()), id=f"{stage}-{name}")
    keys = [key for key in SCHEMA if isinstance(key, Key) and is_number(key.annotation)]
    yield pytest.param("", "keys", keys, id="keys")


def refused(
    config: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str], *words: str
) -> str:
    """The error about a config whose data is not there; nothing was made or looked for."""
    config["dataset"]["args"].setdefault("root", "nowhere")
    path = write_config(folder / "config.json", config)
    before = files_of(folder)
    capsys.readouterr()
    assert run_train("-c", path, *words) == 2
    assert files_of(folder) == before
    error = capsys.readouterr().err
    assert "nowhere" not in error
    return error


def put(config: dict[str, Any], section: str, name: str, args: dict[str, Any]) -> str:
    """Give arguments to a class in its section; returns the path above them."""
    if not section:
        for path, value in args.items():
            *above, last = path.split(".")
            (config[above[0]] if above else config)[last] = value
        return ""
    if section in ("criterion", "selector"):
        stage = {"type": name, "args": args}
        stages = [stage] if section == "criterion" else ["entropy", stage]
        config["al_settings"]["args"]["al_criterion"] = stages
        return f"al_settings.args.al_criterion[{len(stages) - 1}].args."
    cls = REGISTRIES[section][name]
    required = [key.name for key in signature(cls).arguments.values() if key.required]
    full = {key: REQUIRED[key] for key in required if key in REQUIRED} | args
    config[section] = (config.get(section) or {}) | {"args": full}
    if section != "ssl_settings":
        config[section]["type"] = name
    return f"{section}.args."


@pytest.mark.parametrize(("section", "name", "keys"), list(shipped()))
def test_every_number_out_of_its_range(
    section: str, name: str, keys: list[Key], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        key.path: [v for v in wrong_values(key.annotation) if not fits(v, key.annotation)]
        for key in keys
    }
    assert [path for path, values in wrong.items() if not values] == []
    for turn in range(max(map(len, wrong.values()), default=0)):
        args = {path: values[turn % len(values)] for path, values in wrong.items()}
        config = quick_config(Path("nowhere"), tmp_path / "runs")
        above = put(config, section, name, args)
        error = refused(config, tmp_path, capsys)
        missing = [path for path in args if f" {above}{path}: found " not in error]
        assert missing == [], error


def torch_numbers() -> Iterator[Any]:
    for section in TORCH:
        for name, cls in REGISTRIES[section].items():
            for key in signature(cls).arguments.values():
                if is_number(key.annotation) and not is_ours(cls):
                    yield pytest.param(section, name, key, id=f"{name}-{key.name}")


@pytest.mark.parametrize(("section", "name", "key"), list(torch_numbers()))
def test_what_torch_refuses_is_told_at_its_key(
    section: str, name: str, key: Key, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = REGISTRIES[section][name]
    value: Any = [-1, -1] if "list of 2" in describe(key.annotation) else -1
    taken = inspect.signature(cls).parameters
    args = {each: REQUIRED[each] for each, p in taken.items()
            if each in REQUIRED and p.default is p.empty} | {key.name: value}  # fmt: skip
    if key.name in ("last_epoch", "params", "optimizer"):
        return
    if name == "OneCycleLR" and key.name != "total_steps":
        args["total_steps"] = 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    first = optimizer if section == "lr_scheduler" else [torch.nn.Parameter(torch.zeros(1))]
    try:
        cls(first, **args)
    except (ValueError, TypeError, ZeroDivisionError):
        pass
    else:
        return
    config = quick_config(Path("nowhere"), tmp_path / "runs")
    put(config, section, name, args)
    error = refused(config, tmp_path, capsys)
    assert f" {section}.args.{key.name}: " in error, error


def test_the_second_of_two_sections_of_one_class_is_not_called_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_config(Path("nowhere"), tmp_path / "runs")
    config["pseudo_augmentation"] = {"args": {"cutout": 101, "gamma": -1}}
    error = refused(config, tmp_path, capsys)
    assert "pseudo_augmentation.args.cutout: found 101; allowed: integer, 0 to 100" in error
    assert "pseudo_augmentation.args.gamma: found -1; allowed: number, 0 to 0.9" in error
    assert " augmentation." not in error


@pytest.mark.parametrize(
    ("section", "base"),
    [("arch", "BaseModel"), ("dataset", "BaseDataset"), ("optimizer", "Optimizer"),
     ("lr_scheduler", "LRScheduler")],
)  # fmt: skip
def test_a_class_of_another_kind_is_told_at_its_type(
    section: str, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_config(Path("nowhere"), tmp_path / "runs")
    config[section] = {"type": "json.JSONDecoder"}
    error = refused(config | {"dataset": {"args": {}} | config["dataset"]}, tmp_path, capsys)
    assert f" {section}.type: json.JSONDecoder must be a subclass of " in error
    assert f".{base}, which it is not" in error


class Picky:
    def __init__(self, params: Any, depth: int = 1) -> None:
        raise ConfigError(f"depth: found {depth}; allowed: only what I like")


def test_what_a_constructor_refuses_names_its_section() -> None:
    registries = {**config_samples.REGISTRIES, "arch": {"Picky": Picky}}
    config = config_samples.full() | {"arch": {"type": "Picky", "args": {"params": 1}}}
    with pytest.raises(ConfigError, match=r"^arch\.args: depth: found 1; allowed"):
        ConfigParser(config, registries).init_obj("arch")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lr", "fast"], '--lr optimizer.args.lr: found the string "fast"; allowed: number'),
        (["--lr", "nan"], "--lr optimizer.args.lr: found NaN; allowed: number"),
        (["--lr", "-1"], "--lr optimizer.args.lr: SGD refuses"),
        (["--bs", "0"], "--bs batch_size: found 0; allowed: integer, 1 or more"),
        (["--bs", "2.5"], "--bs batch_size: found 2.5; allowed: integer, 1 or more"),
        (["--bs", "null"], "--bs batch_size: found null; allowed: integer, 1 or more"),
    ],
)
def test_options_follow_the_rules_of_their_keys(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = quick_config(Path("nowhere"), tmp_path / "runs")
    assert told in refused(config, tmp_path, capsys, *words)
