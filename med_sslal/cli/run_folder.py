"""What a run says of itself: where it was made, and how to go on with it."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from med_sslal.utils.distributed import World

PACKAGES = ("torch", "torchvision", "albumentations", "numpy", "scikit-learn", "pycocotools")


def resume_command(folder: Path, world: World) -> str:
    """The command line that goes on with a run in as many processes."""
    script = f"train.py --resume {folder}"
    if not world.launched:
        return f"python {script}"
    if world.local_size < world.size:
        return f"torchrun, on each machine with the options of before, {script}"
    return f"torchrun --standalone --nproc_per_node={world.size} {script}"


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
