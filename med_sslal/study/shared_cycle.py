"""Taking over the training of cycle 0, which runs that differ in strategy alone have in common."""

import os
import shutil
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from med_sslal.base.checkpoint import check_can_go_on, load_checkpoint, sidecar
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.config.validate import Registries
from med_sslal.study.study_config import INITIAL, has_student, is_strategy, student_key
from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import CheckpointError, ConfigError
from med_sslal.utils.util import read_json

# May differ beside the strategy: names, and where and how fast things run.
_HARMLESS = ("name", "dataset.args.root", "dataset.args.cache*")
# May grow in a run that goes on, but not beside another one.
_LENGTHS = ("trainer.epochs", "trainer.steps_per_cycle")


def check_shared(
    source: RunFolder,
    config: ConfigParser,
    registries: Registries,
    data_difference: Callable[[Mapping[str, Any]], str | None],
) -> None:
    """Refuse a run whose cycle 0 is not that of `config`.

    `data_difference` tells from a checkpoint how its data is not that of the new run. ConfigError
    where the configs differ in more than the strategy, else a CheckpointError.
    """
    if not source.exists:
        raise CheckpointError(
            f"--cycle0-from: {source} is no run folder: it has no {source.config.name}"
        )
    cycle = source.cycle(0)
    for path in (source.initial, cycle.best, cycle.metrics):
        if not path.is_file():
            raise CheckpointError(
                f"--cycle0-from: cycle 0 of {source} is not finished or was cleared: {path} is "
                "missing; continue that run with --resume first"
            )
    path = source.config
    saved = ConfigParser(read_json(path), registries, source=str(path))
    forbidding = student_key(saved, config)
    free, warned, refused = compare_for_resume(saved.resolved, config.resolved)
    longer = [change for change in free if change[0] in _LENGTHS]
    for key, old, new in (*refused, *warned, *longer):
        harmless = is_strategy(key) or any(fnmatchcase(key, one) for one in _HARMLESS)
        if key in (*INITIAL, forbidding) or not harmless:
            raise ConfigError(
                f"--cycle0-from: {key} is {old!r} in {source} and {new!r} here, so its cycle 0 is "
                "not that of this run: train it anew"
            )
    # That of cycle 0 tells the labels of its training too.
    for path in (source.initial, cycle.best):
        content = load_checkpoint(path)
        check_can_go_on(content, path)
        if (difference := data_difference(content)) is not None:
            raise CheckpointError(
                f"--cycle0-from: {source} was trained on other data: {difference}"
            )


def take_over(source: RunFolder, new: RunFolder, config: ConfigParser) -> None:
    """Put initial weights and cycle 0 of the run `source` into the run `new`, which has a config.

    As its supervised model where `new` alone has a student. Weights are hard links where the disk
    can: no program file is ever changed in place.
    """
    _link(source.initial, new.initial)
    before, after = source.cycle(0), new.cycle(0)
    if has_student(config.resolved) and not has_student(read_json(source.config)):
        after = after.supervised
        pairs = [(before.training, after.training), (before.val_predictions, after.val_predictions)]
    else:
        pairs = list(zip(before.until_measured, after.until_measured, strict=True))
    after.path.mkdir(parents=True)
    for path in before.checkpoints:
        _link(path, after.path / path.name)
    for old, own in ((source.initial_selection, new.initial_selection), *pairs):
        if old.exists():
            shutil.copy2(old, own)


def _link(source: Path, target: Path) -> None:
    """Hard-link a checkpoint and its checksum, or copy them where the disk cannot."""
    for old, new in ((source, target), (sidecar(source), sidecar(target))):
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)
