"""The one streaming pass of the model over the pool."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from med_sslal.al.pool import Pool
from med_sslal.al.record import PoolRecord, RecordHeader
from med_sslal.al.record_writer import RecordWriter
from med_sslal.base.types import Batch
from med_sslal.model.inference import stream


def score_pool(
    model: nn.Module,
    pool: Pool,
    unlabelled: Iterable[Batch],
    labelled: Iterable[Batch],
    path: Path,
    header: RecordHeader,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
) -> PoolRecord:
    """Write what the model sees on every pool image; memory stays bounded for any pool.

    Args:
        model: The detector, or its wrapper for several devices, on `device`.
        pool: What is to be scored.
        unlabelled: Batches of exactly the unlabelled images, in any order and size.
        labelled: Batches of exactly the labelled images, without their labels; only the
            embeddings are kept.
        path: Folder of the record.
        header: What is scored and by what.
        device: Where to compute.
        dtype: Low precision inside the model, None for fp32.

    Returns:
        The finished record.

    Raises:
        ValueError: The loaders gave other images than the pool's.
        UserError: The folder cannot be written.
    """
    scored: list[str] = []
    known: list[str] = []
    with RecordWriter(path, header) as writer:
        for batch, output in stream(model, unlabelled, device, dtype):
            for frame, detections in zip(batch.frames, output.detections, strict=True):
                writer.add(frame.info, detections)
                scored.append(frame.info.image_id)
        for batch, output in stream(model, labelled, device, dtype):
            for frame, detections in zip(batch.frames, output.detections, strict=True):
                writer.add_labelled(frame.info, detections)
                known.append(frame.info.image_id)
        if sorted(scored) != list(pool.unlabelled) or sorted(known) != sorted(pool.labelled):
            raise ValueError(
                f"the loaders gave {len(scored)} unlabelled and {len(known)} labelled images, "
                f"which are not the pool's {len(pool.unlabelled)} and {len(pool.labelled)}"
            )
        return writer.close()
