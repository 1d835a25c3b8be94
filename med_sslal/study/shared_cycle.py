"""Taking over the training of cycle 0, which runs that differ in strategy alone have in common."""

import os
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from med_sslal.base.base_trainer import BEST
from med_sslal.base.checkpoint import check_can_go_on, load_checkpoint, sidecar
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.config.validate import Registries
from med_sslal.study.study_config import INITIAL, is_strategy
from med_sslal.trainer.initial_set import INITIAL_FILE
from med_sslal.utils.errors import CheckpointError, ConfigError
from med_sslal.utils.util import read_json

# What cycle 0 leaves behind before its pool is scored. The last one says that it is finished.
_FILES = (
    "pool.json",
    "timing.json",
    "predictions.json",
    "predictions_val.json",
    "training.json",
    "metrics.json",
)
# May differ beside the strategy: names, and where and how fast things run.
_HARMLESS = ("name", "dataset.args.root", "dataset.args.cache*")


def check_shared(
    source: Path,
    config: ConfigParser,
    registries: Registries,
    data_difference: Callable[[Mapping[str, Any]], str | None],
) -> None:
    """Refuse a run whose cycle 0 is not that of `config`.

    Args:
        source: Folder of the run to take over from.
        config: Config of the new run.
        registries: As for ConfigParser.
        data_difference: From a checkpoint to how its data is not that of the new run.

    Raises:
        CheckpointError: It is no run folder, or its cycle 0 is not finished or of other data.
        ConfigError: The configs differ in more than the strategy.
    """
    if not (source / "config.json").is_file():
        raise CheckpointError(f"--cycle0-from: {source} is no run folder: it has no config.json")
    cycle = source / "cycle_00"
    for path in (source / "initial.pth", cycle / BEST, cycle / "metrics.json"):
        if not path.is_file():
            raise CheckpointError(
                f"--cycle0-from: cycle 0 of {source} is not finished or was cleared: {path} is "
                "missing; continue that run with --resume first"
            )
    path = source / "config.json"
    saved = ConfigParser.from_dict(read_json(path), registries, source=str(path))
    for key, old, new in _differences(saved.resolved, config.resolved):
        raise ConfigError(
            f"--cycle0-from: {key} is {old!r} in {source} and {new!r} here, so its cycle 0 is not "
            "that of this run: train it anew"
        )
    # That of cycle 0 tells the labels of its training too.
    for path in (source / "initial.pth", cycle / BEST):
        content = load_checkpoint(path)
        check_can_go_on(content, path)
        if (difference := data_difference(content)) is not None:
            raise CheckpointError(
                f"--cycle0-from: {source} was trained on other data: {difference}"
            )


def take_over(source: Path, folder: Path) -> None:
    """Put initial weights and cycle 0 of the run `source` into the new run `folder`.

    Weights are hard links where the disk can: no program file is ever changed in place.
    """
    _link(source / "initial.pth", folder / "initial.pth")
    if (source / INITIAL_FILE).exists():
        shutil.copy2(source / INITIAL_FILE, folder / INITIAL_FILE)
    before, after = source / "cycle_00", folder / "cycle_00"
    after.mkdir()
    for path in before.glob("*.pth"):
        _link(path, after / path.name)
    for name in _FILES:
        if (before / name).exists():
            shutil.copy2(before / name, after / name)


def _differences(saved: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Changes that cycle 0 depends on."""
    free, warned, refused = compare_for_resume(saved, new)
    longer = [
        change for change in free if change[0] in ("trainer.epochs", "trainer.steps_per_cycle")
    ]
    return [
        change
        for change in (*refused, *warned, *longer)
        if change[0] in INITIAL
        or not (is_strategy(change[0]) or any(fnmatchcase(change[0], one) for one in _HARMLESS))
    ]


def _link(source: Path, target: Path) -> None:
    """Hard-link a checkpoint and its checksum, or copy them where the disk cannot."""
    for old, new in ((source, target), (sidecar(source), sidecar(target))):
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)
