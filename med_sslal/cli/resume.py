"""What a continuation takes up, and when it is refused."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from med_sslal.base.checkpoint import check_can_go_on, load_checkpoint, newest_good
from med_sslal.cli.build import data_difference, load_weights
from med_sslal.config.parse_config import ConfigParser
from med_sslal.config.resume import compare_for_resume
from med_sslal.trainer.run_folder import RunFolder, load_named
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)


def initial_of(run: RunFolder) -> dict[str, Any]:
    """The weights that every cycle of a run starts from.

    Raises:
        CheckpointError: They are damaged or missing, and nothing can stand in for them.
    """
    try:
        return load_checkpoint(run.initial)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: every cycle starts from it, so put back a copy with its .sha256 file, or "
            "start a new run"
        ) from error


def named_checkpoint(run: RunFolder, path: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that was named, with its content.

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
    return path, content


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


def check_weights(
    run: RunFolder,
    setup: RunSetup,
    initial: Mapping[str, Any],
    named: tuple[Path, Mapping[str, Any]] | None,
) -> None:
    """Refuse to continue on other data, with another architecture, or from what is overtaken.

    Args:
        run: The run.
        setup: What its continuation is made of.
        initial: The content of its initial weights.
        named: The checkpoint that was named and its content, if any.

    Raises:
        CheckpointError: Images, split, labels that were used or the shapes of the weights differ;
            or the run has gone on past the checkpoint that was named.
    """
    for path, content in ((run.initial, initial), *([named] if named else [])):
        check_can_go_on(content, path)
        _check_fits(path, content, setup)
    cycles = run.cycles()
    candidates = cycles[-1].resumable() if cycles else []
    if named and candidates:
        newest = newest_good(candidates)[1]
        reached, furthest = (
            tuple(content[name] for name in ("cycle", "epoch", "batch"))
            for content in (named[1], newest)
        )
        if reached < furthest:
            raise CheckpointError(
                f"the run has gone on past {named[0]}: resume the folder {run}, or start a "
                "new run from the checkpoint with --init-from"
            )
    # Labels may have changed that the furthest training has used.
    for cycle in reversed(cycles):
        try:
            path, content, _ = newest_good([*cycle.resumable(), cycle.best])
        except CheckpointError:
            # Whoever needs a damaged one tells of it.
            continue
        _check_fits(path, content, setup)
        return


def _check_fits(path: Path, content: Mapping[str, Any], setup: RunSetup) -> None:
    """Refuse other data than the checkpoint's, and another architecture."""
    if (difference := data_difference(content, setup)) is not None:
        raise CheckpointError(
            f"the data is not that of {path}: {difference}; give the run its own again, or start a "
            "new one with --init-from"
        )
    load_weights(setup.detector.model(), content, path)
