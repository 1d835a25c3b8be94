"""What a continuation takes up, and when it is refused."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_sslal.base.checkpoint import load_checkpoint, newest_good
from med_sslal.cli.build import data_difference, load_weights
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.trainer.run_folder import RunFolder, load_named
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def save_dir_of(args: Namespace) -> Path:
    """Where `latest` is looked for: the default, or what `--set trainer.save_dir` says."""
    given = [
        override.value for override in args.overrides if override.path == ("trainer", "save_dir")
    ]
    return Path(str(given[-1]) if given else "exp_results")


def load_initial(path: Path) -> dict[str, Any]:
    """The weights that every cycle of a run starts from.

    Raises:
        CheckpointError: They are damaged or missing, and nothing can stand in for them.
    """
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: every cycle starts from it, so put back a copy with its .sha256 file, or "
            "start a new run"
        ) from error


def named_checkpoint(run: RunFolder, path: Path) -> dict[str, Any]:
    """The content of the checkpoint that was named.

    Raises:
        CheckpointError: It is no good checkpoint, holds no training state, or lies in no run.
    """
    content = load_named(path)
    if "state" not in content:
        raise CheckpointError(
            f"{path} holds a model but no training state: resume the run folder, or "
            "start a new run from it with --init-from"
        )
    if not run.exists:
        raise CheckpointError(
            f"{path} lies in no run folder ({run} has no {run.config.name}): start a new run from "
            "it with --init-from"
        )
    return content


def apply_policy(saved: Mapping[str, Any], config: ConfigParser) -> None:
    """Log free changes, warn of risky ones.

    Raises:
        ConfigError: A change that would make the run's curve no result.
    """
    free, warned, refused = compare_for_resume(saved, config.resolved)
    if refused:
        raise ConfigError(
            "\n".join(
                f"{path} was {old!r} and cannot become {new!r} in a resumed run: start a new one"
                for path, old, new in refused
            )
        )
    for path, old, new in free:
        logger.info("%s: %r -> %r", path, old, new)
    for path, old, new in warned:
        logger.warning("%s: %r -> %r; the run is no longer of one piece", path, old, new)


def check_fits(path: Path, content: Mapping[str, Any], setup: RunSetup) -> None:
    """Refuse to continue on other data or with another architecture.

    Raises:
        CheckpointError: Images, split, labels or the shapes of the weights differ.
    """
    if (difference := data_difference(content, setup)) is not None:
        raise CheckpointError(
            f"the data is not that of {path}: {difference}; give the run its own again, or start a "
            "new one with --init-from"
        )
    load_weights(setup.detector.model(), content, path)


def check_newest(run: RunFolder, setup: RunSetup) -> None:
    """Refuse to continue where labels have changed that the furthest training has used.

    Raises:
        CheckpointError: They have.
    """
    for cycle in reversed(run.cycles()):
        try:
            path, content, _ = newest_good([*cycle.resumable(), cycle.best])
        except CheckpointError:
            # Whoever needs a damaged one tells of it.
            continue
        check_fits(path, content, setup)
        return


def check_furthest(run: RunFolder, path: Path, named: Mapping[str, Any]) -> None:
    """A checkpoint that was named must be the furthest good one of its run.

    Raises:
        CheckpointError: The run has gone on past it.
    """
    cycles = run.cycles()
    candidates = cycles[-1].resumable() if cycles else []
    if not candidates:
        return
    _, newest, _ = newest_good(candidates)
    reached, furthest = (
        tuple(content[name] for name in ("cycle", "epoch", "batch")) for content in (named, newest)
    )
    if reached < furthest:
        raise CheckpointError(
            f"the run has gone on past {path}: resume the folder {run}, or start a "
            "new run from the checkpoint with --init-from"
        )
