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
        raise CheckpointError(f"{error}. Remove {advice}") from error


def _advice(run: RunFolder, path: Path) -> str | None:
    """What to remove, and what --resume does then; None of what no run can make again."""
    if path in (run.summary, run.environment):
        return f"{path}: --resume writes it again"
    for whole in run.cycles():
        for cycle in (whole, whole.supervised):
            records = [one for one in (cycle.record, cycle.val_record) if one in path.parents]
            if path == cycle.selection or (records and cycle.queried):
                found = " and ".join(map(str, dict.fromkeys([*records, cycle.selection])))
                return f"{found} and the cycles after {whole.path.name}: --resume queries again"
            if records:
                return f"{records[0]}: --resume scores again"
            if path in (cycle.metrics, cycle.predictions, cycle.val_predictions):
                return f"{cycle.metrics}: --resume measures again"
            if path.parent == cycle.path:
                return f"{path}: --resume makes it again or does without"
    return None
