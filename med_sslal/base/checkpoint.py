"""Checkpoints: plain containers and tensors, written atomically, with a SHA-256 beside each."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from med_sslal.utils.errors import CheckpointError, UserError
from med_sslal.utils.util import atomic_write, check_version, sha256_file

# 2: batch_size became the number of LABELLED images, and a training's state that of its step.
FORMAT_VERSION = 2


def plain(value: Any) -> Any:
    """Turn `value` into what `torch.load(weights_only=True)` accepts, or raise TypeError.

    Tensors move to the CPU; NumPy arrays and scalars, paths, tuples and mappings become tensors,
    numbers, text, lists and dicts.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    # First: some of NumPy's scalars are numbers and text of Python's too.
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def sidecar(path: Path) -> Path:
    """Where the checksum of a checkpoint lies."""
    return path.with_name(path.name + ".sha256")


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint and its checksum, keeping the previous copy as `<stem>_previous.pth`.

    A copy that is damaged is not kept: it would replace the good one before it.
    """
    buffer = io.BytesIO()
    torch.save(plain({"format_version": FORMAT_VERSION, **content}), buffer)
    # In this order `path` or `previous(path)` is whole at every moment, and no good file lies
    # beside another one's checksum, except a previous copy that is about to be replaced.
    if path.is_file() and sidecar(path).is_file() and (checksum := _checksum(path)):
        _write_sidecar(previous(path), checksum)
        path.replace(previous(path))
    _write_sidecar(path, hashlib.sha256(buffer.getbuffer()).hexdigest())
    atomic_write(path, buffer.getbuffer())


def _checksum(path: Path) -> str | None:
    """The SHA-256 of a file that its sidecar agrees with; None where it does not."""
    checksum = sha256_file(path)
    return checksum if sidecar(path).read_bytes().split()[:1] == [checksum.encode()] else None


def _write_sidecar(path: Path, checksum: str) -> None:
    # In the form of sha256sum.
    atomic_write(sidecar(path), f"{checksum}  {path.name}\n".encode())


def previous(path: Path) -> Path:
    """Where the copy before the newest one lies."""
    return path.with_name(f"{path.stem}_previous{path.suffix}")


def load_checkpoint(path: Path, *, require_checksum: bool = True) -> dict[str, Any]:
    """Read and verify a checkpoint; a wrong checksum is always an error, a missing one may be.

    CheckpointError where it is missing, damaged, foreign or newer than this program.
    """
    content = load_tensors(path, require_checksum=require_checksum)
    check_version(content, FORMAT_VERSION, path, CheckpointError)
    return dict(content)


def check_can_go_on(content: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue what an older program trained by other rules: it is good to test."""
    version = content["format_version"]
    if version < FORMAT_VERSION:
        raise CheckpointError(
            f"{path} is of an older program (format_version {version}, now {FORMAT_VERSION}), "
            "whose steps were made of other images: its run can be tested, but not go on; start a "
            "new one, from these weights with --init-from if they are wanted"
        )


def load_tensors(path: Path, *, require_checksum: bool = False) -> Any:
    """Read any file of tensors and plain containers, with its checksum where there is one.

    CheckpointError where it is missing, damaged, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    if sidecar(path).is_file():
        if _checksum(path) is None:
            raise CheckpointError(f"{path} is damaged: its SHA-256 differs from {sidecar(path)}")
    elif require_checksum:
        raise CheckpointError(f"{path} has no checksum file {sidecar(path).name} beside it")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # torch's unpickler stumbles over foreign bytes in many ways: IndexError, struct.error, ...
    except Exception as error:
        # torch's words are of its inside, or advise to unpickle what nobody has checked.
        why = error.strerror if isinstance(error, OSError) else "it is damaged, or of another kind"
        if isinstance(error, MemoryError | RuntimeError) and sidecar(path).is_file():
            # It is as it was written.
            why = str(error).partition("\n")[0] or "not enough memory"
        raise CheckpointError(
            f"{path} is no readable checkpoint of tensors and plain containers: {why}"
        ) from error


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Hex SHA-256 of names and values: equal weights agree, whatever else their files hold."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def newest_good(
    candidates: Sequence[Path],
    check: Callable[[dict[str, Any]], object] = lambda content: None,
    load: Callable[[Path], dict[str, Any]] = load_checkpoint,
) -> tuple[Path, dict[str, Any], list[str]]:
    """The first checkpoint of `candidates` that `load` reads and that passes `check`.

    `check` is called with the content and raises CheckpointError where it is of no use. Returns
    path, content, and one sentence for each candidate that was passed over; CheckpointError where
    there is none.
    """
    complaints: list[str] = []
    for path in candidates:
        try:
            content = load(path)
            check(content)
        except UserError as error:
            complaints.append(str(error))
        else:
            return path, content, complaints
    raise CheckpointError("no usable checkpoint: " + "; ".join(complaints))
