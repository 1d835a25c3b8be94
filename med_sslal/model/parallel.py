"""Several devices: DataParallel over lists of images, and one process for each device.

Several GPUs in one process: the stock class cuts every tensor of a list along its first axis, an
image into channels and a target into boxes, without a word. Here whole images are dealt out. Low
precision needs nothing: it is set inside the detector, so the threads see it.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from med_sslal.base.base_model import BaseModel
from med_sslal.base.types import Detections, Frame, ModelOutput, Rois, Target
from med_sslal.model.norm import share_batch_norm
from med_sslal.utils.distributed import World
from med_sslal.utils.errors import DeviceError

Part = tuple[Tensor | list[Tensor], list[Target] | None, list[Frame] | None]


class ListDataParallel(DataParallel):
    """A detector on several GPUs; the batch size is that of all of them together.

    `module` is the detector, and its state dict is what a checkpoint holds.
    """

    def __init__(self, module: BaseModel, device_ids: Sequence[int]) -> None:
        """Wrap a detector whose parameters lie on the first of these visible GPUs.

        Raises:
            DeviceError: There are fewer GPUs.
        """
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not device_ids or max(device_ids) >= found:
            raise DeviceError(
                f"GPUs {list(device_ids)} asked for, {found} found: use --device cpu or fewer GPUs"
            )
        super().__init__(module, list(device_ids))

    def forward(
        self,
        images: Tensor | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        frames: Sequence[Frame] | None = None,
    ) -> ModelOutput:
        """Deal out the images, run the replicas and gather (see BaseModel.forward)."""
        parts = scatter_parts(images, targets, frames, len(self.device_ids))
        moved = [
            part_to(part, torch.device("cuda", number))
            for part, number in zip(parts, self.device_ids, strict=False)
        ]
        if len(moved) == 1:
            return self.module(*moved[0])
        replicas: Any = self.replicate(self.module, self.device_ids[: len(moved)])
        outputs = self.parallel_apply(replicas, moved, None)
        return gather_outputs(outputs, self.src_device_obj)


def distribute(model: BaseModel, world: World) -> nn.Module:
    """Let the processes train one model, each on its share of every batch.

    It has the same weights in all of them. The losses must be weighted so that their mean over the
    processes is what is wanted. Batch norm takes its statistics over all processes. The detector
    itself stays what `model` is, so its weights are of the same names.
    """
    if world.size == 1:
        return model
    share_batch_norm(model)
    # Norm statistics are alike in all processes without being sent around. Newer versions of torch
    # have a new name for that, and complain of the old one.
    known = signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    still: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, **still)


def unwrap(model: nn.Module) -> BaseModel:
    """The detector itself, whatever wraps it."""
    wrapped = isinstance(model, DataParallel | DistributedDataParallel)
    bare = model.module if wrapped else model
    assert isinstance(bare, BaseModel)
    return bare


def scatter_parts(
    images: Tensor | Sequence[Tensor],
    targets: Sequence[Target] | None,
    frames: Sequence[Frame] | None,
    n: int,
) -> list[Part]:
    """Deal a batch out in order, in at most `n` parts whose sizes differ by one at most.

    Returns:
        One (images, targets, frames) per part, none of them empty (see BaseModel.forward).
    """
    size = len(images)
    n = max(1, min(n, size))
    bounds = [size * i // n for i in range(n + 1)]
    return [
        (
            images[start:stop] if isinstance(images, Tensor) else list(images[start:stop]),
            None if targets is None else list(targets[start:stop]),
            None if frames is None else list(frames[start:stop]),
        )
        for start, stop in pairwise(bounds)
    ]


def part_to(part: Part, device: torch.device) -> Part:
    """A copy of a part on `device`; frames stay on the CPU."""
    images, targets, frames = part

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    moved = move(images) if isinstance(images, Tensor) else [move(image) for image in images]
    return moved, targets and [target.each(move) for target in targets], frames


def gather_outputs(outputs: Sequence[ModelOutput], device: torch.device) -> ModelOutput:
    """Join the outputs of the parts on `device`, in order.

    Losses and class qualities are one entry per image, so their mean weighs every image alike
    whatever the parts' sizes.
    """
    moved = [output_to(output, device) for output in outputs]
    losses = {name: torch.cat([out.losses[name] for out in moved]) for name in moved[0].losses}
    qualities = [out.class_quality for out in moved if out.class_quality is not None]
    passes = zip(*(out.head_passes for out in moved), strict=True)
    return ModelOutput(
        losses,
        [item for out in moved for item in out.detections],
        torch.cat(qualities) if qualities else None,
        tuple([item for part in parts for item in part] for parts in passes),
        tuple(item for out in moved for item in out.rois),
    )


def output_to(output: ModelOutput, device: torch.device) -> ModelOutput:
    """Bring an output to `device`, one transfer per field instead of one per image and field."""
    losses = {name: value.to(device) for name, value in output.losses.items()}
    quality = None if output.class_quality is None else output.class_quality.to(device)
    detections = _detections_to(output.detections, device)
    passes = tuple(_detections_to(found, device) for found in output.head_passes)
    rois = tuple(Rois(item.boxes.to(device), item.logits.to(device)) for item in output.rois)
    return ModelOutput(losses, detections, quality, passes, rois)


def _detections_to(detections: list[Detections], device: torch.device) -> list[Detections]:
    if not detections or detections[0].boxes.device == device:
        return detections
    columns: dict[str, Sequence[Tensor]] = {}
    for field in fields(Detections):
        values = [getattr(item, field.name) for item in detections]
        if values[0] is not None:
            # An embedding has no axis of detections, but joins and splits along its own as well.
            joined = torch.cat(values).to(device)
            columns[field.name] = joined.split([len(value) for value in values])
    return [
        replace(item, **{name: column[i] for name, column in columns.items()})
        for i, item in enumerate(detections)
    ]
