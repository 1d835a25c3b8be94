"""Making folders of runs and of results: whole or not at all, and never over another one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp

from med_sslal.trainer.run_folder import LATEST, ResultFolder
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import UNFINISHED, fsync_folder


def new_run_folder(save_dir: Path, name: str, run_id: str | None, seed: int) -> Path:
    """Name a run's folder, `save_dir/name/<run id or time and seed>`, without making it.

    Raises:
        UserError: It exists already.
    """
    folder = save_dir / name / (run_id or f"{datetime.now():%Y%m%d_%H%M%S}_s{seed}")
    if folder.exists():
        raise UserError(_exists(folder))
    return folder


@contextmanager
def new_results(folder: Path) -> Iterator[ResultFolder]:
    """Make a folder of results, which may be there if it is empty; an error leaves nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    if taken:
        raise UserError(f"the folder {folder} is not empty: name another one with --out")
    try:
        yield ResultFolder(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def filled_first(folder: Path) -> Iterator[Path]:
    """Make a run folder that has its name only when all is in it; an error leaves nothing.

    Yields:
        The folder to fill, of a temporary name beside it.

    Raises:
        UserError: It cannot be made, or another process has made it meanwhile.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(mkdtemp(prefix=f".{folder.name}.", suffix=UNFINISHED, dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"cannot make the run folder {folder} (trainer.save_dir): {error.strerror}"
        ) from error
    try:
        # mkdtemp keeps others out, as a run's folder does not.
        partial.chmod(0o755)
        yield partial
        try:
            partial.rename(folder)
        except OSError as error:
            raise UserError(_exists(folder)) from error
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _exists(folder: Path) -> str:
    return (
        f"the run folder {folder} exists already: continue it with --resume, or give another "
        "--run-id"
    )


def point_to(save_dir: Path, folder: Path) -> None:
    """Make `latest` in `save_dir` a relative link to `folder`, replacing an old one at once.

    Raises:
        UserError: There is something else of that name, or the folder cannot be written.
    """
    link = save_dir / LATEST
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.symlink_to(os.path.relpath(folder, save_dir), target_is_directory=True)
        temporary.replace(link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot make the link {link}: {error.strerror}") from error
