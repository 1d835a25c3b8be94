"""Compiling the parts of a detector that gain by it, for `trainer.compile`."""

import torch

from med_sslal.base.base_model import BaseModel
from med_sslal.utils.errors import DeviceError, UserError


def check_compiler(device: torch.device) -> None:
    """Compile and run one line on `device`, to hear now what would stop the first step.

    Raises:
        DeviceError: torch.compile does not work here.
    """
    try:
        # A kernel from the cache would prove nothing.
        line = torch.compile(lambda values: values * 2 + 1, options={"force_disable_caches": True})
        line(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = next(line.strip() for line in str(error).splitlines() if line.strip())
        needed = "a C++ compiler" if device.type == "cpu" else "Triton and a C compiler"
        raise DeviceError(
            f"trainer.compile is true, but torch.compile fails on this machine ({reason[:200]}): "
            f"install {needed} or set trainer.compile to false"
        ) from error


def compile_parts(model: BaseModel) -> None:
    """Compile what `model` names, in place: the names of its state dict stay.

    Raises:
        UserError: It names nothing.
    """
    parts = model.compilable()
    if not parts:
        raise UserError(
            f"trainer.compile is true, but {type(model).__name__} names no part that can be "
            "compiled (BaseModel.compilable): set trainer.compile to false"
        )
    for part in parts:
        part.compile()
