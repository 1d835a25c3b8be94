"""Run folders: made once, found again, and the pointer to the newest."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from med_sslal.base.base_trainer import BEST
from med_sslal.base.checkpoint import load_checkpoint, newest_good
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import CheckpointError, UserError
from med_sslal.utils.util import UNFINISHED, fsync_folder, remove_unfinished, write_json

PACKAGES = ("torch", "torchvision", "albumentations", "numpy", "scikit-learn", "pycocotools")


@dataclass(frozen=True)
class RunPath:
    """What a `--resume` argument names.

    Attributes:
        folder: The run folder.
        checkpoint: The checkpoint that was named, None where a folder was.
    """

    folder: Path
    checkpoint: Path | None = None


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
def filled_first(folder: Path) -> Iterator[Path]:
    """Make a run folder that has its name only when all is in it; an error leaves nothing.

    Args:
        folder: What `new_run_folder` named.

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


def point_to(link: Path, folder: Path) -> None:
    """Make `link` a relative symbolic link to `folder`, replacing an old one at once.

    Raises:
        UserError: There is something else of that name, or the folder cannot be written.
    """
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    try:
        temporary.symlink_to(os.path.relpath(folder, link.parent), target_is_directory=True)
        temporary.replace(link)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot make the link {link}: {error.strerror}") from error


def find_run(path: str, save_dir: Path) -> RunPath:
    """Resolve a checkpoint, a run folder, or the word `latest` (the newest run of `save_dir`).

    Raises:
        CheckpointError: There is nothing of the kind.
    """
    where = save_dir / "latest" if path == "latest" else Path(path)
    if where.is_dir():
        folder = where.resolve()
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{path} is no run folder: it has no config.json")
        return RunPath(folder)
    if where.is_file():
        return RunPath(where.resolve().parent.parent, where)
    raise CheckpointError(f"there is no checkpoint or run folder {where}")


def load_named(path: Path, *, require_checksum: bool = True) -> dict[str, Any]:
    """Read a checkpoint that the command line names: nothing stands in for a bad one.

    Raises:
        CheckpointError: As of `load_checkpoint`, with what to do.
    """
    try:
        return load_checkpoint(path, require_checksum=require_checksum)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; name another one, or the run folder for its newest good one"
        ) from error


def finished_best(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The best checkpoint of the last cycle whose training has ended.

    A damaged one is passed over for that of the cycle before.

    Returns:
        Its path, its content, and one sentence for each that was passed over.

    Raises:
        CheckpointError: No cycle is that far, or no such checkpoint is good.
    """
    done = [path.parent / BEST for path in sorted(folder.glob("cycle_*/training.json"))]
    if not done:
        raise CheckpointError(f"no cycle of {folder} is finished yet: continue it with --resume")
    return newest_good(done[::-1])


def resume_command(folder: Path, world: World) -> str:
    """The command line that goes on with a run in as many processes."""
    script = f"train.py --resume {folder}"
    if not world.launched:
        return f"python {script}"
    if world.local_size < world.size:
        return f"torchrun, on each machine with the options of before, {script}"
    return f"torchrun --standalone --nproc_per_node={world.size} {script}"


def clear_unfinished(folder: Path) -> None:
    """Remove the half-written files that a killed process left in a run folder.

    Raises:
        UserError: The folder cannot be written.
    """
    try:
        for part in (folder, *folder.glob("cycle_*")):
            remove_unfinished(part)
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}") from error


def environment(device: str, n_threads: int) -> dict[str, Any]:
    """Versions, device and threads: what can change a run's numbers."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "gpu": torch.cuda.get_device_name(0) if device.startswith("cuda") else None,
        "threads": n_threads,
    }


def _version(package: str) -> str | None:
    """The installed version, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write the resolved config of the run."""
    write_json(folder / "config.json", config)
