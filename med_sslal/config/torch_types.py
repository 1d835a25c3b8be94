"""The optimisers and schedulers of torch that a config may name. torch is imported on call."""

from collections.abc import Mapping
from typing import Any

from med_sslal.config.signature import convert_arguments


def optimizers() -> dict[str, type]:
    """Torch's optimisers that step without a closure on dense weights of any shape."""
    from torch import optim

    return {
        "ASGD": optim.ASGD,
        "Adadelta": optim.Adadelta,
        "Adafactor": optim.Adafactor,
        "Adagrad": optim.Adagrad,
        "Adam": optim.Adam,
        "AdamW": optim.AdamW,
        "Adamax": optim.Adamax,
        "NAdam": optim.NAdam,
        "RAdam": optim.RAdam,
        "RMSprop": optim.RMSprop,
        "Rprop": optim.Rprop,
        "SGD": optim.SGD,
    }


def lr_schedulers() -> dict[str, type]:
    """Torch's schedulers that need neither callables nor child schedulers."""
    from torch.optim import lr_scheduler

    return {
        "ConstantLR": lr_scheduler.ConstantLR,
        "CosineAnnealingLR": lr_scheduler.CosineAnnealingLR,
        "CosineAnnealingWarmRestarts": lr_scheduler.CosineAnnealingWarmRestarts,
        "CyclicLR": lr_scheduler.CyclicLR,
        "ExponentialLR": lr_scheduler.ExponentialLR,
        "LinearLR": lr_scheduler.LinearLR,
        "MultiStepLR": lr_scheduler.MultiStepLR,
        "OneCycleLR": lr_scheduler.OneCycleLR,
        "PolynomialLR": lr_scheduler.PolynomialLR,
        "ReduceLROnPlateau": lr_scheduler.ReduceLROnPlateau,
        "StepLR": lr_scheduler.StepLR,
    }


def refused_by_torch(
    optimizer: type,
    optimizer_args: Mapping[str, Any],
    scheduler: type | None,
    scheduler_args: Mapping[str, Any],
) -> list[tuple[str, str]]:
    """Build the pair on one throw-away weight, to hear now what it would refuse later.

    Ranges (a negative rate) and arguments that go together stand in no signature.

    Returns:
        Section and sentence of each refusal.
    """
    import torch

    weight = torch.nn.Parameter(torch.zeros(1))
    section, cls = "optimizer", optimizer
    try:
        built = optimizer([weight], **convert_arguments(optimizer, optimizer_args))
        if scheduler is not None:
            section, cls = "lr_scheduler", scheduler
            scheduler(built, **convert_arguments(scheduler, scheduler_args))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        return [(section, f"{cls.__name__} refuses these arguments: {error}")]
    return []
