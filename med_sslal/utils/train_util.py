"""Devices, random states and precision of a training."""

import os
import random
import resource
import sys
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from med_sslal.utils.distributed import World
from med_sslal.utils.errors import DeviceError
from med_sslal.utils.util import stable_hash


@dataclass(frozen=True)
class Devices:
    """What a run computes on: `main` holds the parameters, `ids` names every GPU (CPU: empty)."""

    main: torch.device
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"cuda:{','.join(map(str, self.ids))}" if self.ids else str(self.main)


def resolve_devices(n_gpu: int | str) -> Devices:
    """The devices that `n_gpu` (0, N or "auto") means; DeviceError where there are fewer."""
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = min(found, 1) if n_gpu == "auto" else int(n_gpu)
    if wanted > found:
        raise DeviceError(
            f'{wanted} GPU(s) asked for, {found} found: use --device cpu, n_gpu "auto" or fewer'
        )
    if wanted == 0:
        return Devices(torch.device("cpu"))
    return Devices(torch.device("cuda", 0), tuple(range(wanted)))


def process_device(n_gpu: int | str, world: World) -> Devices:
    """The one device of a process that torchrun started; a GPU becomes the current one."""
    if n_gpu not in ("auto", 0, 1):
        raise DeviceError(
            f"n_gpu is {n_gpu}, but torchrun starts one process for each GPU: set n_gpu to 1 or "
            '"auto", and give the number of GPUs of a machine as torchrun\'s --nproc_per_node'
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if n_gpu == 0 or (n_gpu == "auto" and not found):
        return Devices(torch.device("cpu"))
    if found < world.local_size:
        raise DeviceError(
            f"{world.local_size} processes on this machine, {found} GPU(s) found: give torchrun a "
            "smaller --nproc_per_node, or train.py --device cpu"
        )
    torch.cuda.set_device(world.local_rank)
    return Devices(torch.device("cuda", world.local_rank), (world.local_rank,))


def restrict_visible_devices(device: str) -> int:
    """Apply `--device cpu|cuda|2,3` and return the `n_gpu` that it means, or raise DeviceError.

    Sets CUDA_VISIBLE_DEVICES, so it must run before CUDA starts.
    """
    if device == "cpu":
        return 0
    if device == "cuda":
        resolve_devices(1)
        return 1
    names = device.split(",")
    if not all(name.isdigit() for name in names) or len(set(names)) != len(names):
        raise DeviceError(f"--device takes cpu, cuda or GPU numbers such as 2,3; found '{device}'")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # Counted here: asking torch would start CUDA with every device visible. CUDA itself stops
        # at the first entry that is none.
        before = list(takewhile(lambda one: one.strip() not in ("", "-1"), visible.split(",")))
        if max(map(int, names)) >= len(before):
            raise DeviceError(
                f'--device {device}: CUDA_VISIBLE_DEVICES="{visible}" shows {len(before)} GPU(s), '
                "numbered from 0: change the one or the other, or use --device cpu"
            )
        names = [before[int(name)] for name in names]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found == len(names):
        return found
    os.environ.pop("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    raise DeviceError(f"--device {device}: no such GPU on this machine; use --device cpu")


def seed_everything(*parts: str | int) -> None:
    """Seed the global generators of Python, NumPy and torch from `parts`."""
    seed = stable_hash(*parts) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """Every global random state as plain containers and tensors, loadable with weights_only."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "python": [version, list(internal), gauss_next],
        "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the global random states that `random_states` returned."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def peak_memory(device: torch.device) -> str:
    """The most memory taken so far: of the GPU, or of this process on the CPU."""
    if device.type == "cuda":
        taken = torch.cuda.max_memory_allocated(device)
    else:
        # Linux counts in KiB, macOS in bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"{taken / 2**30:.1f} GiB"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The low precision that `trainer.precision` means on `device`, or None for fp32.

    `auto` takes bf16 where the hardware computes it (CUDA from Ampere on; CPUs with AMX or
    AVX512-BF16), else fp32. fp16 on a CPU is a DeviceError.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # Private, because the public query came later than torch 2.8.
            fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else None
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("trainer.precision fp16 needs a GPU: use bf16, fp32 or auto")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
