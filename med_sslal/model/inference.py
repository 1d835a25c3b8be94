"""Passes of a detector over batches, in eval mode and without gradients."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Batch, Extras, ModelOutput
from med_sslal.model.parallel import output_to, unwrap


def stream(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Batch, ModelOutput]]:
    """Run a detector, or its ListDataParallel, over batches, without gradients.

    The model is in eval mode while the iterator lives and returns to its mode afterwards; norm
    statistics and the global random state stay untouched. It lies on `device` and computes in low
    precision `dtype`, None for fp32. Batches with targets give validation losses.

    Yields:
        The batch as the loader gave it, and the output on the CPU.
    """
    with evaluating(model, dtype):
        for batch in loader:
            yield batch, infer(model, batch.to(device))


@contextmanager
def evaluating(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Keep a detector, or its ListDataParallel, in eval mode with low precision `dtype`."""
    bare = unwrap(model)
    was_training, old_dtype = model.training, bare.autocast_dtype
    model.eval()
    bare.autocast_dtype = dtype
    try:
        yield
    finally:
        bare.autocast_dtype = old_dtype
        model.train(was_training)


def infer(model: nn.Module, batch: Batch, extras: Extras | None = None) -> ModelOutput:
    """One pass, inside `evaluating`, over a batch on the model's device; its output on the CPU.

    `extras` is what to hand out beside the plain detections, None for nothing.
    """
    # Around the model alone: a caller that iterates would run without gradients too.
    with handing_out(unwrap(model), extras or Extras()), torch.inference_mode():
        output = model(batch.images, batch.targets, batch.frames)
    return output_to(output, torch.device("cpu"))


@contextmanager
def handing_out(model: BaseModel, extras: Extras) -> Iterator[None]:
    """Let a detector's passes in eval mode hand out `extras` beside the plain detections."""
    old, model.extras = model.extras, extras
    try:
        yield
    finally:
        model.extras = old
