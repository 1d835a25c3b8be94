"""Whether two runs are equal to the bit, but for what a clock or a place on the disk leaves."""

import json
from pathlib import Path
from typing import Any

import torch

from med_sslal.base.checkpoint import load_checkpoint
from tests.tiny import files_of

TIMES = {"seconds", "minutes", "config_hash", "sha256"}
COMPARED = (".json", ".pth", ".npy", ".csv")
APART = {"environment.json", "config.json", "results.csv", "summary.json"}


def clean(value: Any) -> Any:
    """Without what a clock gave."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items() if key not in TIMES}
    return [clean(item) for item in value] if isinstance(value, list) else value


def read(path: Path) -> Any:
    return clean(json.loads(path.read_text()))


def same(first: Any, second: Any) -> bool:
    """Whether two nests of containers and tensors are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, states, selections, labels, predictions and metrics agree to the bit."""
    names = {name for name in files_of(first) if name.endswith(COMPARED)} - APART
    # The copies before the newest are of other epochs where a training went back.
    names = {name for name in names if not name.endswith("_previous.pth")}
    assert names <= files_of(second), names - files_of(second)
    for name in sorted(names):
        if name.endswith(".json"):
            assert read(first / name) == read(second / name), name
        elif name.endswith(".pth"):
            contents = [load_checkpoint(run / name) for run in (first, second)]
            for content in contents:
                content.pop("config", None)
            assert same(*map(clean, contents)), name
        else:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert read(first / "summary.json") == read(second / "summary.json")
