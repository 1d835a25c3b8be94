"""How torch computes: fp32 that is fp32, and with `deterministic` the same bits in every call."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from med_sslal.utils.errors import DeviceError, UserError

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# The two that cuBLAS is deterministic with; the first costs 24 MiB of a GPU and less time.
_FIXED = (":4096:8", ":16:8")
_REFUSAL = " does not have a deterministic implementation"


@contextmanager
def arithmetic(*, deterministic: bool) -> Iterator[None]:
    """Let a GPU convolve fp32 in fp32, and torch take deterministic operations alone where wanted.

    cuDNN would round what it multiplies to TF32, of 10 bits, in a way that depends on the size of a
    batch: an image's scores would depend on its neighbours. On a CPU nothing of it changes a bit.
    The context must begin before CUDA computes anything, because of `fix_workspace`. UserError
    where an operation in it is there in no deterministic form, and that is wanted.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        with _deterministic() if deterministic else nullcontext():
            yield
    finally:
        cudnn.allow_tf32 = before


@contextmanager
def _deterministic() -> Iterator[None]:
    fix_workspace()
    cudnn = torch.backends.cudnn
    before = (torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
    torch.use_deterministic_algorithms(True)
    # cuDNN's benchmark would choose among equal algorithms by the clock.
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        name, found, _ = str(error).partition(_REFUSAL)
        if not found:
            raise
        raise UserError(
            f"deterministic is true, but there is no deterministic form of the operation {name}: "
            "do without it, or set deterministic to false (--resume takes that too)"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def fix_workspace() -> None:
    """Give cuBLAS workspaces that it is deterministic with, for the rest of the process.

    It reads the variable once, when CUDA computes for the first time; one that fits is kept, any
    other is a DeviceError.
    """
    found = os.environ.setdefault(_WORKSPACE, _FIXED[0])
    if found not in _FIXED:
        raise DeviceError(
            f"deterministic is true, but {_WORKSPACE} is '{found}' in the environment: unset it, "
            f"or set it to {' or '.join(_FIXED)}"
        )
