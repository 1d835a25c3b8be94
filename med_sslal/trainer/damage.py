"""What to do about a damaged file of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from med_sslal.trainer.run_folder import RunFolder
from med_sslal.utils.errors import CheckpointError, DataError


@contextmanager
def telling_what_to_remove(run: RunFolder) -> Iterator[None]:
    """Let the error of a damaged file of a run say how the run can go on.

    Raises:
        CheckpointError: In place of a DataError of a file that the run can make again.
    """
    try:
        yield
    except DataError as error:
        advice = None if error.path is None else _advice(run, error.path)
        if advice is None:
            raise
        raise CheckpointError(f"{error}. {advice}") from error


def _advice(run: RunFolder, path: Path) -> str | None:
    """What to do about a damaged file, as a sentence; None of what no run can make again."""
    if path == run.summary:
        return f"Remove {path}: --resume writes it again"
    if path == run.environment:
        return f"Remove {path}: the run does without it"
    for whole in run.cycles():
        for cycle in (whole, whole.supervised):
            records = [one for one in (cycle.record, cycle.val_record) if one in path.parents]
            if records and cycle.queried:
                # To make it again would be to train the cycles after it again.
                return f"The query of {cycle.path.name} is made, which it was for: name another"
            if records:
                return f"Remove {records[0]}: --resume scores again"
            if path == cycle.selection:
                after = f"and the cycles after {whole.path.name}"
                return f"Remove {path} {after}: --resume queries again"
            if path in (cycle.metrics, cycle.predictions, cycle.val_predictions):
                return f"Remove {cycle.metrics}: --resume measures again"
            # Which answers of a person a cycle stands on is told nowhere else.
            if path.parent == cycle.path and not (path == cycle.pool and run.answers.exists()):
                return f"Remove {path}: --resume makes it again or does without"
    return None
