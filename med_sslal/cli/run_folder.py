"""Run folders: made once, found again, and the pointer to the newest."""

import os
import platform
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from med_sslal.base.base_trainer import BEST
from med_sslal.utils.errors import CheckpointError, UserError
from med_sslal.utils.util import write_json

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


def create_run_folder(save_dir: Path, name: str, run_id: str | None, seed: int) -> Path:
    """Make `save_dir/name/<run id or time and seed>`.

    Raises:
        UserError: The folder exists already or cannot be made.
    """
    last = run_id or f"{datetime.now():%Y%m%d_%H%M%S}_s{seed}"
    folder = save_dir / name / last
    if folder.exists():
        raise UserError(
            f"the run folder {folder} exists already: continue it with --resume, or give another "
            "--run-id"
        )
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot make a run folder under {save_dir} (trainer.save_dir): {error.strerror}"
        ) from error
    return folder


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


def finished_best(folder: Path) -> Path:
    """The best checkpoint of the last cycle whose training has ended.

    Raises:
        CheckpointError: No cycle is that far.
    """
    done = [path.parent / BEST for path in sorted(folder.glob("cycle_*/training.json"))]
    if not done:
        raise CheckpointError(f"no cycle of {folder} is finished yet: continue it with --resume")
    return done[-1]


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


def save_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the resolved config of the run."""
    write_json(folder / "config.json", config)
