"""Boundary types: what passes between the rooms.

Shape shorthand: B images of a batch, N boxes of an image, C classes with background, D embedding
length, P best proposals of an image. Boxes are float32 [N, 4] in xyxy order: (x1, y1) is the upper
left corner and (x2, y2) the lower right one, in continuous pixel coordinates (a picture of width W
spans 0 to W), so IoU needs no `+ 1`. Two frames exist: the ORIGINAL pixels of the file, and the
model's frame (the fixed shape of a run). Labels are int64, 0 is background. N may be 0 everywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

import numpy as np
import torch
from torch import Tensor

from med_sslal.utils.errors import DataError, LabelAccessError

# A blackened rectangle: x1, y1, x2, y2 in pixels of the model's frame.
Hole = tuple[float, float, float, float]
# Stands for a default whose length is the number of boxes; filled in when the object is made.
PER_BOX_DEFAULT: Final[Any] = None


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image without its label."""

    image_id: str  # stable name of the image, never a position
    group_id: str  # patient, or the image id where there is none
    file_name: str  # path relative to the data root
    orig_size: tuple[int, int]  # (height, width) of the file in pixels
    spacing_mm: float | None = None  # in-plane millimetres per pixel, where known
    series_id: str | None = None  # the series of slices that it lies in, where it is a slice
    slice_index: int | None = None  # its place there; slices that follow each other differ by 1


@dataclass(frozen=True)
class Annotation:
    """The label of one image, in ORIGINAL pixels (NumPy); DataError where it breaks these rules."""

    boxes: np.ndarray  # float32 [N, 4], finite, of positive area
    labels: np.ndarray  # int64 [N], from 1 on
    ignore: np.ndarray  # bool [N]; an ignore region neither attracts nor repels
    # bool [N]; False where the box teaches no regression (pseudo-labels).
    regress: np.ndarray = PER_BOX_DEFAULT
    # float32 [N] longest diameter, NaN where unknown; evaluation by size reads it.
    sizes_mm: np.ndarray = PER_BOX_DEFAULT
    # N names, "" where unknown; evaluation by type reads it.
    subtypes: tuple[str, ...] = PER_BOX_DEFAULT

    def __post_init__(self) -> None:
        n = len(self.labels)
        sizes = np.full(n, np.nan, dtype=np.float32)
        defaults = (("regress", np.ones(n, bool)), ("sizes_mm", sizes), ("subtypes", ("",) * n))
        for name, value in defaults:
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        boxes = self.boxes
        if boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4:
            raise DataError(
                f"boxes must be float32 [N, 4], found {boxes.dtype} {list(boxes.shape)}"
            )
        if not np.isfinite(boxes).all():
            raise DataError(f"boxes must be finite, found {boxes[~np.isfinite(boxes).all(1)][0]}")
        bad = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if bad.any():
            raise DataError(f"boxes must be xyxy of positive area, found {boxes[bad][0]}")
        for name, dtype in (("labels", np.int64), ("ignore", bool), ("regress", bool)):
            array = getattr(self, name)
            if array.shape != (len(boxes),) or array.dtype != dtype:
                wanted = f"{np.dtype(dtype).name} [{len(boxes)}]"
                raise DataError(f"{name} must be {wanted}, found {array.dtype} {list(array.shape)}")
        if len(self.sizes_mm) != n or len(self.subtypes) != n:
            raise DataError(f"sizes_mm and subtypes must have {n} entries")
        if n and self.labels.min() < 1:
            raise DataError(f"labels start at 1 (0 is background), found {self.labels.min()}")

    @classmethod
    def empty(cls) -> "Annotation":
        """The label of an image without any box (a valid negative)."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool))

    @property
    def n_objects(self) -> int:
        """Number of boxes that are no ignore regions."""
        return int((~self.ignore).sum())


@dataclass(frozen=True)
class Prediction:
    """What evaluation reads of an image's detections: NumPy, ORIGINAL pixels."""

    boxes: np.ndarray  # float32 [N, 4]
    labels: np.ndarray  # int64 [N]
    scores: np.ndarray  # float32 [N]

    @classmethod
    def empty(cls) -> "Prediction":
        """No detection."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


@dataclass(frozen=True)
class Target:
    """An image's label in the model's frame (torch)."""

    boxes: Tensor  # float32 [N, 4] in pixels of the sample's image
    labels: Tensor  # int64 [N]
    ignore: Tensor  # bool [N]
    regress: Tensor  # bool [N]; False where the box teaches classification only
    # A teacher says what is in the proposals, so that the box head looks into ignore regions too.
    soft: bool = field(default=False, kw_only=True)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Target":
        """A copy with its tensors changed, such as moved to a device."""
        tensors = map(change, (self.boxes, self.labels, self.ignore, self.regress))
        return Target(*tensors, soft=self.soft)


@dataclass(frozen=True)
class Frame:
    """Where a sample's pixels lie in its file."""

    info: ImageInfo
    # float32 [2, 3] affine on the CPU; maps (x, y, 1) of the model's frame to ORIGINAL pixels.
    to_original: Tensor
    # (height, width) of the picture, which starts in the upper left corner, in pixels of the
    # model's frame; None where `to_original` tells it.
    valid_size: tuple[float, float] | None = None
    # Of what a training step draws for this image; None leaves that to the global generator.
    seed: int | None = None
    holes: tuple[Hole, ...] = ()  # what augmentation has blackened in this view


@dataclass(frozen=True)
class Sample:
    """One labelled (or pseudo-labelled) image, ready for the model."""

    image: Tensor  # float32 [3, H, W] in [0, 1]
    target: Target  # the label in the same frame
    frame: Frame  # the image's name and its way back to ORIGINAL pixels
    pseudo: bool = False  # True where the label is a pseudo-label


@dataclass(frozen=True)
class UnlabelledSample:
    """One image of the unlabelled pool; it has no label and refuses to be asked for one."""

    image: Tensor
    frame: Frame

    @property
    def target(self) -> NoReturn:
        """Raise LabelAccessError: nothing that scores or selects may see a pool image's label."""
        raise LabelAccessError(
            f"image {self.frame.info.image_id} is unlabelled: only the oracle knows its label"
        )


@dataclass(frozen=True)
class Batch:
    """Samples of one fixed shape, stacked."""

    images: Tensor  # float32 [B, 3, H, W]
    targets: tuple[Target, ...] | None  # B labels, or None for unlabelled images
    frames: tuple[Frame, ...]  # B frames
    pseudo: Tensor  # bool [B]

    @classmethod
    def collate(cls, samples: Sequence[Sample] | Sequence[UnlabelledSample]) -> "Batch":
        """Stack samples; all labelled or all unlabelled."""
        targets = None
        if isinstance(samples[0], Sample):
            targets = tuple(sample.target for sample in samples)
        return cls(
            torch.stack([sample.image for sample in samples]),
            targets,
            tuple(sample.frame for sample in samples),
            torch.tensor([getattr(sample, "pseudo", False) for sample in samples]),
        )

    def __len__(self) -> int:
        return len(self.frames)

    def pin_memory(self) -> "Batch":
        """A copy whose tensors lie in page-locked memory (called by DataLoader)."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> "Batch":
        """A copy on `device`; frames stay on the CPU."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        targets = self.targets and tuple(target.each(change) for target in self.targets)
        return Batch(change(self.images), targets, self.frames, change(self.pseudo))


@dataclass(frozen=True)
class Detections:
    """One image's detections as they leave the model's room, best score first.

    Every row survived thresholding, NMS and top-k together. Boxes are in ORIGINAL pixels.
    """

    boxes: Tensor  # float32 [N, 4]
    labels: Tensor  # int64 [N]
    scores: Tensor  # float32 [N]
    class_probs: Tensor  # float32 [N, C], background first
    proposals: Tensor  # float32 [N, 4], the proposal that each box was regressed from
    embedding: Tensor  # float32 [D], the last backbone stage averaged over the valid area
    top_proposals: Tensor  # float32 [P, 4], best objectness first
    top_objectness: Tensor  # float32 [P] in [0, 1]
    roi_features: Tensor | None = None  # float32 [N, F] on request, else None
    # float32 [N, 4] on request, else None: the box head's box of the same class for the
    # detection's own box as RoI.
    refined_boxes: Tensor | None = None

    def prediction(self) -> Prediction:
        """The part that evaluation reads, as NumPy."""
        parts = (self.boxes, self.labels, self.scores)
        return Prediction(*(part.cpu().numpy() for part in parts))


@dataclass(frozen=True)
class Rois:
    """The proposals of an image that a box head learnt from in one pass."""

    boxes: Tensor  # float32 [S, 4] in pixels of the given image
    logits: Tensor  # float32 [S, C], background first, with gradients


@dataclass(frozen=True)
class ModelOutput:
    """What a detector returns."""

    # Name to float32 [B], one value per image: `loss_classifier`, `loss_box_reg`, and with
    # proposals `loss_objectness`, `loss_rpn_box_reg`. Empty without targets.
    losses: dict[str, Tensor]
    detections: list[Detections]  # B entries in eval mode, empty in training mode
    # float32 [B, C - 1, 2] in training mode, without gradients: for each image and foreground
    # class, the sum of p^0.6 * IoU^0.4 over the positives (sampled RoIs, or anchors) and
    # their number. p is the probability of the true class, IoU that of the decoded box (before it
    # is cut at the border) with its true box, in the model's frame. None in eval mode, and from a
    # detector that does not measure it.
    class_quality: Tensor | None = None
    # One list of B entries for each of `Extras.head_passes`.
    head_passes: tuple[list[Detections], ...] = ()
    rois: tuple[Rois, ...] = ()  # B entries in training mode, where there is a box head


@dataclass(frozen=True)
class Extras:
    """What a pass in eval mode hands out beside the plain detections."""

    # Fields of Detections that are filled on request, `roi_features` or `refined_boxes`.
    columns: tuple[str, ...] = ()
    # Numbers of stochastic passes of the RoI heads over the proposals of the plain detections, with
    # dropout. A number and an image's id fix what is dropped. Row j of a pass is the proposal and
    # label of detection j, with another box, score and class_probs.
    head_passes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Selected:
    """One image of a query."""

    image_id: str
    rank: int  # 1 for the first
    group_id: str  # its patient
    values: Mapping[str, float]  # raw value of every criterion by name
    reason: str  # one sentence why it was taken


@dataclass(frozen=True)
class ScheduleEntry:
    """Which entry of a schedule made a query."""

    number: int  # 1 for the first
    of: int  # how many there are
    reason: str  # why, such as "val_sens_mean 0.43 < 0.5"

    def __str__(self) -> str:
        return f"entry {self.number} of {self.of} of the schedule: {self.reason}"


@dataclass(frozen=True)
class Selection:
    """The outcome of one query, in the order of selection."""

    items: tuple[Selected, ...]  # the images taken
    # Criterion name to (image id to value) over ALL pool images.
    scores: Mapping[str, Mapping[str, float]]
    criteria: tuple[str, ...]  # names of the criteria and selector in order of use
    seed: int  # the run's seed
    # Rank correlation, over ALL pool images, of the first criterion's value and the number of
    # detections; None where either is the same for all.
    box_count_bias: float | None
    # The entry of the schedule that chose; None where the strategy is no schedule.
    entry: ScheduleEntry | None = None

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Ids in order of selection."""
        return tuple(item.image_id for item in self.items)
