"""One streaming pass of a detector over a loader."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from med_sslal.base.types import Batch, ModelOutput
from med_sslal.model.parallel import output_to, unwrap


def stream(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str,
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[Batch, ModelOutput]]:
    """Run a detector over batches, without gradients.

    The model is in eval mode while the iterator lives and returns to its mode afterwards; norm
    statistics and the global random state stay untouched.

    Args:
        model: A detector or its ListDataParallel, on `device`.
        loader: Yields batches; where they have targets, the outputs have validation losses.
        device: Where the model is.
        dtype: Low precision inside the model, None for fp32.

    Yields:
        The batch as the loader gave it, and the output on the CPU.
    """
    bare = unwrap(model)
    was_training, old_dtype = model.training, bare.autocast_dtype
    model.eval()
    bare.autocast_dtype = dtype
    try:
        for batch in loader:
            moved = batch.to(device)
            # Not around the yield: the caller's own code would run without gradients too.
            with torch.inference_mode():
                output = model(moved.images, moved.targets, moved.frames)
            yield batch, output_to(output, torch.device("cpu"))
    finally:
        bare.autocast_dtype = old_dtype
        model.train(was_training)
