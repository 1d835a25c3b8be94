"""Running a detector over a split or the pool, in all processes of the run together."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from med_sslal.al.pool import Pool
from med_sslal.al.record import PLAIN, PoolRecord, RecordHeader
from med_sslal.al.scoring import SeenBatch, record_pool, see
from med_sslal.base.base_data_loader import BadSample, BaseDataLoader
from med_sslal.base.checkpoint import weights_hash
from med_sslal.base.types import Annotation, Batch, Prediction
from med_sslal.data.dataset import LabelledView, UnlabelledView
from med_sslal.data.sampler import whole_batches
from med_sslal.logger.progress import track
from med_sslal.model.inference import evaluating, infer, stream
from med_sslal.trainer.remote_calls import together
from med_sslal.trainer.run_folder import CycleFolder
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import StopRequest

logger = logging.getLogger(__name__)


def loader_of(
    setup: RunSetup, ids: Sequence[str], labels: Mapping[str, Annotation] | None
) -> BaseDataLoader:
    """A loader of this process's share of `ids`, in their order and without augmentation.

    Without labels it gives unlabelled samples, which refuse to be asked for one.
    """
    view: Any
    if labels is None:
        view = UnlabelledView(setup.images, ids, setup.transforms.eval)
    else:
        view = LabelledView(setup.images, labels, ids, setup.transforms.eval)
    # The batch size is that of all processes together.
    size = -(-setup.compute.batch_size // setup.world.size)
    return setup.compute.loader(view, whole_batches(len(ids), size, setup.world))


def predict(
    model: nn.Module, loader: BaseDataLoader, setup: RunSetup, *, stop: StopRequest, title: str
) -> tuple[dict[str, Prediction], float | None]:
    """Detections of every image of the loader's view, and the mean loss where it gives labels.

    All processes call it, each with the loader of its share. Rank 0 gets image id to prediction in
    ORIGINAL pixels, and the mean over images of the summed losses (None without labels); the others
    nothing, and None.

    Raises:
        Interrupted: A stop was asked for.
        UserError: The loss of an image is NaN or infinite; the text names the images.
    """
    view: Any = loader.dataset
    batches = _batches(setup, loader, stop, title)
    own = _seen(stream(model, batches, setup.compute.devices.main, setup.compute.dtype), title)
    seen = {item[0]: item for part in setup.world.merged(own, stop) for item in part}
    if not setup.world.is_main:
        return {}, None
    if seen.keys() != set(view.ids):
        raise ValueError(f"{title}: {len(seen)} images were seen, {len(view.ids)} were to be")
    ordered = [seen[image_id] for image_id in view.ids]
    predictions = {image_id: prediction for image_id, prediction, _ in ordered}
    losses = [loss for _, _, loss in ordered if loss is not None]
    return predictions, sum(losses) / len(losses) if losses else None


def _batches(
    setup: RunSetup, loader: BaseDataLoader, stop: StopRequest, title: str
) -> Iterator[Batch]:
    watched = setup.world.watch(loader, stop)
    return track(watched, title, len(loader), show=setup.settings.show_progress)


def _seen(
    outputs: Iterator[tuple[Batch, Any]], title: str
) -> Iterator[list[tuple[str, Prediction, float | None]]]:
    """Id, prediction and summed loss of the images of each batch."""
    for batch, output in outputs:
        names = [frame.info.image_id for frame in batch.frames]
        losses: list[float | None] = [None] * len(names)
        if output.losses:
            losses = torch.stack(list(output.losses.values())).double().sum(0).tolist()
        bad = [n for n, loss in zip(names, losses, strict=True) if not math.isfinite(loss or 0)]
        if bad:
            raise UserError(
                f"the validation loss is not finite for the images {', '.join(bad)} ({title}): the "
                "training has diverged; lower optimizer.args.lr or set trainer.grad_clip"
            )
        found = [detections.prediction() for detections in output.detections]
        yield list(zip(names, found, losses, strict=True))


def detect_readable(
    model: nn.Module,
    batches: Iterable[tuple[Batch | None, list[BadSample]]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[dict[str, Prediction | str]]:
    """Detections of the images of each batch by id; of one that cannot be read, why not."""
    with evaluating(model, dtype):
        for batch, bad in batches:
            found: dict[str, Prediction | str] = {each.image_id: each.message for each in bad}
            if batch is not None:
                detections = infer(model, batch.to(device)).detections
                for frame, each in zip(batch.frames, detections, strict=True):
                    found[frame.info.image_id] = each.prediction()
            yield found


def predict_split(
    setup: RunSetup, *, stop: StopRequest, weights: Mapping[str, Tensor], split: str, title: str
) -> tuple[dict[str, Prediction], float | None]:
    """`predict` for a split and a detector of these weights; all processes call it."""
    loader = loader_of(setup, setup.images.splits[split], setup.split_labels(split))
    return predict(_detector(setup, weights), loader, setup, stop=stop, title=title)


def predict_images(
    setup: RunSetup,
    *,
    stop: StopRequest,
    weights: Mapping[str, Tensor],
    ids: Sequence[str],
    title: str,
) -> dict[str, Prediction]:
    """`predict` for images whose labels are not looked at; all processes call it."""
    loader = loader_of(setup, ids, None)
    return predict(_detector(setup, weights), loader, setup, stop=stop, title=title)[0]


def score(
    setup: RunSetup,
    *,
    stop: StopRequest,
    weights: Mapping[str, Tensor],
    pool: Pool,
    path: Path,
    header: RecordHeader,
    title: str = "scoring the pool",
    labelled_of: Path | None = None,
    **recorded: Any,
) -> PoolRecord | None:
    """Score the pool with a detector of these weights; all processes call it.

    `labelled_of` is as of `record_pool`, by its folder, and `recorded` are its `views` and
    `columns`. Returns the record in rank 0, which writes it, None in the others.
    """
    model, world = _detector(setup, weights), setup.world

    def seen(ids: Sequence[str], title: str, **more: Any) -> Iterator[SeenBatch]:
        batches = _batches(setup, loader_of(setup, ids, None), stop, title)
        compute = setup.compute
        return world.merged(see(model, batches, compute.devices.main, compute.dtype, **more), stop)

    streams = seen(pool.unlabelled, title, **recorded), seen(pool.labelled, "labelled images")
    if world.is_main:
        known = None if labelled_of is None else PoolRecord.open(labelled_of)
        return record_pool(pool, *streams, path, header, labelled_of=known, **recorded)
    for _ in chain(*streams):
        raise AssertionError("only rank 0 gets what is seen")
    return None


def score_best(
    setup: RunSetup,
    stop: StopRequest,
    folder: CycleFolder,
    *,
    pool: Pool,
    path: Path,
    header: Callable[[Mapping[str, Any]], RecordHeader],
    views: Sequence[str],
    columns: Sequence[str],
    **more: Any,
) -> PoolRecord:
    """The record of what a cycle's best model sees, made unless one with all of that is there.

    `header` is given the model's checkpoint; the others are as of `score`.
    """
    if path.exists():
        record = PoolRecord.open(path)
        plain = record.section(PLAIN)
        if set(views) <= record.sections.keys() and all(
            getattr(plain, name) is not None for name in columns
        ):
            return record
        shutil.rmtree(path)
    best, started = folder.load_best(), time.monotonic()
    what = {"pool": pool, "path": path, "header": header(best), "weights": best["model"]}
    what |= {"views": views, "columns": columns, **more}
    made = together(score, setup, stop, **what)
    assert made is not None
    seconds = time.monotonic() - started
    folder.note_seconds("scoring", seconds, more=path != folder.record)
    if path == folder.record:
        done = (folder.number, len(pool.unlabelled), seconds)
        logger.info("cycle %d: scored %d unlabelled images in %.1f s", *done)
    return made


def header_of(
    setup: RunSetup, content: Mapping[str, Any], labels: Mapping[str, Annotation]
) -> RecordHeader:
    """What a record says of the checkpoint that scores, and of the labels known then."""
    names = setup.class_names
    numbers = [n for label in labels.values() for n in label.labels[~label.ignore].tolist()]
    return RecordHeader(
        **setup.fingerprints(labels),
        model_hash=weights_hash(content["model"]),
        config_hash=setup.config.digest(),
        class_names=names,
        class_counts={name: numbers.count(i) for i, name in enumerate(names, start=1)},
        class_difficulty=content.get("class_difficulty", {}),
    )


def _detector(setup: RunSetup, weights: Mapping[str, Tensor]) -> nn.Module:
    """A detector of these weights, on the devices of this process."""
    model = setup.detector.model()
    model.load_state_dict(weights)
    return setup.compute.parallel(model.to(setup.compute.devices.main))
