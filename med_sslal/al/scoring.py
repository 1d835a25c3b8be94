"""The one streaming pass of the model over the pool."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord, RecordHeader
from med_sslal.al.record_writer import RecordWriter
from med_sslal.al.views import View, change, parse_views
from med_sslal.base.types import Batch, Detections, Extras, ImageInfo
from med_sslal.model.inference import evaluating, infer

# The images of a batch, each with the detections of every view by name.
SeenBatch = list[tuple[ImageInfo, dict[str, Detections]]]


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
    views: Sequence[str] = (PLAIN,),
    columns: Sequence[str] = (),
    labelled_of: PoolRecord | None = None,
    merged: Callable[[Iterator[SeenBatch]], Iterable[SeenBatch]] = iter,
) -> PoolRecord:
    """Write what the model sees on every pool image; memory stays bounded for any pool.

    Args:
        model: The detector, or its wrapper for several devices, on `device`.
        pool: What the loaders give.
        unlabelled: Batches of exactly the unlabelled images, in any order and size.
        labelled: Batches of exactly the labelled images, without their labels; only the
            embeddings are kept.
        path: Folder of the record.
        header: What is scored and by what.
        device: Where to compute.
        dtype: Low precision inside the model, None for fp32.
        views: The sections to record, see `al.views`; the plain one always is. Each view of the
            image costs a pass, from the one loading of a batch.
        columns: Those of OPTIONAL_COLUMNS that are recorded of the plain detections.
        labelled_of: A record of the same model, whose labelled images and their embeddings are
            taken over; the pool has none then.
        merged: Adds what other processes see, each on its share of the images; they call
            `see_pool` meanwhile.

    Returns:
        The finished record.

    Raises:
        ConfigError: There is no such view.
        ValueError: The loaders gave other images than the pool's.
        UserError: The folder cannot be written, or the detector cannot give what is asked for.
    """
    scored, known = [], []
    names = [view.name for view in parse_views(views)]
    streams = see_pool(model, unlabelled, labelled, device, dtype, views, columns)
    with RecordWriter(path, header, views=names, columns=columns) as writer:
        for batch in merged(streams[0]):
            for info, found in batch:
                writer.add(info, found.pop(PLAIN), found)
                scored.append(info.image_id)
        for batch in merged(streams[1]):
            for info, found in batch:
                writer.add_labelled(info, found[PLAIN])
                known.append(info.image_id)
        if sorted(scored) != list(pool.unlabelled) or sorted(known) != sorted(pool.labelled):
            raise ValueError(
                f"the loaders gave {len(scored)} unlabelled and {len(known)} labelled images, "
                f"which are not the pool's {len(pool.unlabelled)} and {len(pool.labelled)}"
            )
        if labelled_of is not None:
            writer.take_labelled(labelled_of)
        return writer.close()


def see_pool(
    model: nn.Module,
    unlabelled: Iterable[Batch],
    labelled: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype | None,
    views: Sequence[str] = (PLAIN,),
    columns: Sequence[str] = (),
) -> tuple[Iterator[SeenBatch], Iterator[SeenBatch]]:
    """What the model sees on the unlabelled images, and on the labelled ones without other views.

    The arguments are those of `score_pool`. Nothing runs before the streams are read.
    """
    return (
        _seen(model, unlabelled, device, dtype, parse_views(views), columns),
        _seen(model, labelled, device, dtype, (), ()),
    )


def _seen(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype | None,
    views: Sequence[View],
    columns: Sequence[str],
) -> Iterator[SeenBatch]:
    """Run all views of each batch in turn."""
    heads = [view for view in views if not view.is_full]
    extras = Extras(tuple(columns), tuple(view.number for view in heads))
    with evaluating(model, dtype):
        for batch in loader:
            moved = batch.to(device)
            output = infer(model, moved, extras)
            found = {PLAIN: output.detections}
            for view, detections in zip(heads, output.head_passes, strict=True):
                found[view.name] = detections
            for view in views:
                if view.is_full:
                    images, frames = change(view, moved.images, moved.frames)
                    seen = replace(moved, images=images, frames=frames)
                    found[view.name] = infer(model, seen).detections
            yield [
                (frame.info, {name: detections[row] for name, detections in found.items()})
                for row, frame in enumerate(batch.frames)
            ]
