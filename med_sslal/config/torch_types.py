"""The optimisers and schedulers of torch that a config may name. torch is imported on call."""

from collections.abc import Callable, Mapping
from typing import Any

from med_sslal.config.signature import convert_arguments, signature


def optimizers() -> dict[str, type]:
    """Torch's optimisers that step without a closure on dense weights of any shape."""
    from torch import optim as of

    known: tuple[type, ...] = (
        of.ASGD, of.Adadelta, of.Adafactor, of.Adagrad, of.Adam, of.AdamW, of.Adamax, of.NAdam,
        of.RAdam, of.RMSprop, of.Rprop, of.SGD,
    )  # fmt: skip
    return {cls.__name__: cls for cls in known}


def lr_schedulers() -> dict[str, type]:
    """Torch's schedulers that need neither callables nor child schedulers."""
    from torch.optim import lr_scheduler as of

    known: tuple[type, ...] = (
        of.ConstantLR, of.CosineAnnealingLR, of.CosineAnnealingWarmRestarts, of.CyclicLR,
        of.ExponentialLR, of.LinearLR, of.MultiStepLR, of.OneCycleLR, of.PolynomialLR,
        of.ReduceLROnPlateau, of.StepLR,
    )  # fmt: skip
    return {cls.__name__: cls for cls in known}


def refused_by_torch(
    optimizer: type,
    optimizer_args: Mapping[str, Any],
    scheduler: type | None,
    scheduler_args: Mapping[str, Any],
) -> list[tuple[tuple[str, ...], str]]:
    """Build the pair on one throw-away weight, to hear now what it would refuse later.

    Ranges (a negative rate) and arguments that go together stand in no signature. Returns key path
    and sentence of each refusal.
    """
    import torch

    def make_optimizer(args: Mapping[str, Any]) -> Any:
        weight = torch.nn.Parameter(torch.zeros(1))
        return optimizer([weight], **convert_arguments(optimizer, args))

    refused, good = _refused(optimizer, make_optimizer, optimizer_args)
    problems = [(("optimizer", *at), sentence) for at, sentence in refused]
    if scheduler is None or good is None:
        return problems

    def make_scheduler(args: Mapping[str, Any]) -> Any:
        return scheduler(make_optimizer(good), **convert_arguments(scheduler, args))

    refused, _ = _refused(scheduler, make_scheduler, scheduler_args)
    return problems + [(("lr_scheduler", *at), sentence) for at, sentence in refused]


def _refused(
    cls: type, make: Callable[[Mapping[str, Any]], Any], args: Mapping[str, Any]
) -> tuple[list[tuple[tuple[str, ...], str]], dict[str, Any] | None]:
    """What `make` refuses of `args`, and the arguments that it takes, None where there are none.

    To blame is the argument without which the refusal is another one or none, or, as required ones
    cannot be left out, the one that the refusal names.
    """
    problems: list[tuple[tuple[str, ...], str]] = []
    known, left = signature(cls).arguments, dict(args)
    while (told := _refusal(make, left)) is not None:
        at: tuple[str, ...] = ("args",)
        for name in left:
            required = name in known and known[name].required
            rest = {key: value for key, value in left.items() if key != name}
            if name in told if required else _refusal(make, rest) != told:
                at = ("args", name)
                break
        problems.append((at, f"{cls.__name__} refuses these arguments: {told}"))
        if at == ("args",) or required:
            return problems, None
        left = rest
    return problems, left


def _refusal(make: Callable[[Mapping[str, Any]], Any], args: Mapping[str, Any]) -> str | None:
    """Why torch refuses `args`; None where it takes them."""
    try:
        make(args)
    except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError, RuntimeError) as e:
        return str(e)
    return None
