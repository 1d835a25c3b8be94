"""Running a detector over a split: predictions, and the mean validation loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from med_sslal.base.base_data_loader import BaseDataLoader
from med_sslal.base.base_dataset import BaseDataset
from med_sslal.base.types import Annotation, Prediction
from med_sslal.data.dataset import LabelledView, UnlabelledView
from med_sslal.data.sampler import SequentialBatchSampler
from med_sslal.logger.progress import track
from med_sslal.model.inference import stream
from med_sslal.trainer.setup import RunSetup
from med_sslal.utils.errors import UserError
from med_sslal.utils.interrupt import StopRequest


def loader_of(
    setup: RunSetup, ids: Sequence[str], labels: Mapping[str, Annotation] | None
) -> BaseDataLoader:
    """A loader without augmentation, in the order of `ids`.

    Args:
        setup: The run.
        ids: The images.
        labels: Their labels; None gives unlabelled samples that refuse to be asked for one.
    """
    view: Any
    images = setup.dataset.without_labels()
    if labels is None:
        view = UnlabelledView(images, ids, setup.eval_transform)
    else:
        view = LabelledView(images, labels, ids, setup.eval_transform)
    return BaseDataLoader(
        view,
        batch_sampler=SequentialBatchSampler(len(ids), setup.batch_size),
        n_workers=setup.n_workers,
        pin_memory=setup.devices.main.type == "cuda",
    )


def predict(
    model: nn.Module,
    loader: BaseDataLoader,
    setup: RunSetup,
    *,
    stop: StopRequest,
    title: str,
) -> tuple[dict[str, Prediction], float | None]:
    """Detections of every image of the loader, and the mean loss where it gives labels.

    Returns:
        Image id to prediction in ORIGINAL pixels, and the mean over images of the summed losses
        (None without labels).

    Raises:
        Interrupted: A stop was asked for.
        UserError: The loss of an image is NaN or infinite; the text names the images.
    """
    batches = track(stop.watch(loader), title, len(loader), show=setup.settings.show_progress)
    predictions: dict[str, Prediction] = {}
    losses: list[float] = []
    for batch, output in stream(model, batches, setup.devices.main, setup.dtype):
        for frame, found in zip(batch.frames, output.detections, strict=True):
            predictions[frame.info.image_id] = found.prediction()
        if output.losses:
            found_losses = torch.stack(list(output.losses.values())).double().sum(0)
            bad = (~found_losses.isfinite()).nonzero().flatten().tolist()
            if bad:
                names = ", ".join(batch.frames[row].info.image_id for row in bad)
                raise UserError(
                    f"the validation loss is not finite for the images {names} ({title}): the "
                    "training has diverged; lower optimizer.args.lr or set trainer.grad_clip"
                )
            losses += found_losses.tolist()
    return predictions, sum(losses) / len(losses) if losses else None


def split_labels(dataset: BaseDataset, split: str) -> dict[str, Annotation]:
    """The labels of one split."""
    return {image_id: dataset.annotations[image_id] for image_id in dataset.splits[split]}
