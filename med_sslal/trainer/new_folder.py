"""Making folders of runs and of results: whole or not at all, and never over another one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from med_sslal.trainer.run_folder import LATEST, ResultFolder
from med_sslal.utils.errors import UserError
from med_sslal.utils.util import remove, whole_folder


@contextmanager
def new_results(folder: Path) -> Iterator[ResultFolder]:
    """Make a folder of results, which may be there if it is empty; an error leaves nothing."""
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    if taken:
        raise UserError(f"the folder {folder} is not empty: name another one with --out")
    try:
        yield ResultFolder(folder)
    except BaseException:
        for path in (folder,) if is_new else folder.iterdir():
            remove(path)
        raise


@contextmanager
def filled_first(folder: Path) -> Iterator[Path]:
    """Make a run folder as `whole_folder` does; UserError where there is one of that name."""
    taken = UserError(
        f"the run folder {folder} exists already: continue it with --resume, or give another "
        "--run-id"
    )
    if folder.exists():
        raise taken
    try:
        with whole_folder(folder, "the run folder (trainer.save_dir)") as partial:
            yield partial
    except UserError as error:
        if folder.exists():
            # Another process has made it meanwhile.
            raise taken from error
        raise


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
