"""The one streaming pass of the model over the pool."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord, RecordHeader
from med_sslal.al.record_writer import RecordWriter
from med_sslal.al.views import change, parse_views
from med_sslal.base.types import Batch, Detections, Extras, ImageInfo
from med_sslal.model.inference import evaluating, infer

# The images of a batch, each with the detections of every view by name.
SeenBatch = list[tuple[ImageInfo, dict[str, Detections]]]


def record_pool(
    pool: Pool,
    unlabelled: Iterable[SeenBatch],
    labelled: Iterable[SeenBatch],
    path: Path,
    header: RecordHeader,
    *,
    views: Sequence[str] = (PLAIN,),
    columns: Sequence[str] = (),
    labelled_of: PoolRecord | None = None,
) -> PoolRecord:
    """Write, and open, what the model sees on every pool image; memory stays bounded.

    Args:
        pool: What is seen.
        unlabelled: Exactly the unlabelled images, in any order, as `see` gives them.
        labelled: Exactly the labelled ones; only the embeddings are kept.
        path: Folder of the record.
        header: What is scored and by what.
        views: The sections to record; the plain one always is.
        columns: Those of OPTIONAL_COLUMNS that are recorded of the plain detections.
        labelled_of: A record of the same model, whose labelled images and their embeddings are
            taken over; the pool has none then.

    Raises:
        ConfigError: There is no such view.
        ValueError: Other images than the pool's were seen.
        UserError: The folder cannot be written, or the detector cannot give what is asked for.
    """
    scored, known = [], []
    names = [view.name for view in parse_views(views)]
    with RecordWriter(path, header, views=names, columns=columns) as writer:
        for info, found in chain.from_iterable(unlabelled):
            writer.add(info, found.pop(PLAIN), found)
            scored.append(info.image_id)
        for info, found in chain.from_iterable(labelled):
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


def see(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    views: Sequence[str] = (PLAIN,),
    columns: Sequence[str] = (),
) -> Iterator[SeenBatch]:
    """Run a detector over batches, in all views of each; nothing runs before it is read.

    Args:
        model: The detector, or its wrapper for several devices, on `device`.
        loader: Batches, whose labels are not looked at.
        device: Where to compute.
        dtype: Low precision inside the model, None for fp32.
        views: See `al.views`; each view of the image costs a pass, from one loading of a batch.
        columns: Those of OPTIONAL_COLUMNS that the plain detections bring.
    """
    wanted = parse_views(views)
    heads = [view for view in wanted if not view.is_full]
    extras = Extras(tuple(columns), tuple(view.number for view in heads))
    with evaluating(model, dtype):
        for batch in loader:
            moved = batch.to(device)
            output = infer(model, moved, extras)
            found = {PLAIN: output.detections}
            for view, detections in zip(heads, output.head_passes, strict=True):
                found[view.name] = detections
            for view in wanted:
                if view.is_full:
                    images, frames = change(view, moved.images, moved.frames)
                    seen = replace(moved, images=images, frames=frames)
                    found[view.name] = infer(model, seen).detections
            yield [
                (frame.info, {name: detections[row] for name, detections in found.items()})
                for row, frame in enumerate(batch.frames)
            ]
