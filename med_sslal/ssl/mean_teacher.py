"""A mean teacher: what a model finds in weak views, for a student that is shown the strong ones.

Shape shorthand: B unlabelled images of a step in this process, N boxes and S sampled proposals of
an image, C classes with background.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from med_sslal.base.types import Batch, Extras, Prediction, Rois, Target
from med_sslal.base.views import into_view
from med_sslal.model.detector import Seen
from med_sslal.model.detectors import FasterRCNN
from med_sslal.model.inference import handing_out
from med_sslal.model.targets import paired_ious
from med_sslal.model.transform import to_original
from med_sslal.ssl.quality import Quality
from med_sslal.utils.errors import UserError

# What of a change of counts is taken for chance, in standard deviations.
CHANCE = 2.0


class Teacher:
    """Looks at weak views, and says what strong views of the same images show.

    Attributes:
        model: The detector: one that stays as it is, or, once the teacher `follows`, another.
        class_names: Names without background.
        follows: Whether it is the student's average.
    """

    def __init__(
        self,
        model: FasterRCNN,
        thresholds: Mapping[str, float],
        floor: float | None,
        regress_iou: float | None = None,
    ) -> None:
        """Be sure of boxes from the `thresholds` of the classes on, unsure from `floor` on.

        A sure box teaches regression where it has an IoU of `regress_iou` or more with what the
        box head makes of it (None: none does).
        """
        self.model, self.class_names, self.follows = model, tuple(thresholds), False
        self._lowest = [math.inf, *thresholds.values()]
        self._floor = math.inf if floor is None else floor
        self._regress_iou = regress_iou

    def follow(self, model: FasterRCNN) -> None:
        """Be another model from now on."""
        self.model, self.follows = model, True

    @torch.no_grad()
    def look(self, weak: Batch, strong: Batch) -> "Lesson":
        """What the teacher says of B images, by their weak views."""
        model = self.model.eval()
        seen = model.see(weak.images, None, weak.frames)
        lowest = torch.tensor(self._lowest, device=weak.images.device)
        asked = () if self._regress_iou is None else ("refined_boxes",)
        with handing_out(model, Extras(asked)):
            detections = model.look(seen).detections
        targets, given = [], []
        for found, frame in zip(detections, strong.frames, strict=True):
            size = strong.images.shape[-2:]
            boxes, shown = into_view(found.boxes, frame, size, rounded=True)
            sure = found.scores >= lowest[found.labels]
            kept = shown & (sure | (found.scores >= self._floor))
            # All teach what is there; where its borders are, only those that hold still.
            still = torch.zeros_like(sure)
            if self._regress_iou is not None and found.refined_boxes is not None:
                iou = paired_ious(found.boxes, found.refined_boxes)
                still = sure & (iou >= self._regress_iou)
            flags = (~sure[kept], still[kept])
            targets.append(Target(boxes[kept], found.labels[kept], *flags, soft=True))
            given.append(tuple(x[sure] for x in (found.boxes, found.labels, found.scores)))
        return Lesson(model, seen, weak, strong, tuple(targets), tuple(given))

    def state_dict(self) -> dict[str, Any]:
        """Its own weights; those that it follows are the student's to keep."""
        own = None if self.follows else self.model.state_dict()
        return {"model": own, "follows": self.follows}

    def load_state_dict(self, state: Mapping[str, Any], kept: FasterRCNN) -> None:
        """Take over what `state_dict` returned; `kept` is what it follows, if it does."""
        if state["follows"]:
            self.follow(kept)
        else:
            self.model.load_state_dict(state["model"])


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of the B images of a step."""

    model: FasterRCNN
    seen: Seen  # the weak views
    weak: Batch
    strong: Batch
    # B labels in the strong views; boxes that are not sure are ignore regions.
    targets: tuple[Target, ...]
    # Boxes in ORIGINAL pixels, labels and scores of the sure ones, hidden in the view or not.
    given: tuple[tuple[Tensor, ...], ...]

    @property
    def sure(self) -> Tensor:
        """Whether there is a sure box in an image: float32 [B]."""
        any_sure = torch.stack([(~target.ignore).any() for target in self.targets])
        return any_sure.to(self.strong.images)

    def predictions(self) -> dict[str, Prediction]:
        """What the teacher is sure of, by image id."""
        ids = [frame.info.image_id for frame in self.strong.frames]
        return {
            name: Prediction(*(column.cpu().numpy() for column in columns))
            for name, columns in zip(ids, self.given, strict=True)
        }

    def count(self, number: int) -> list[int]:
        """The sure boxes of the classes 1 to `number`."""
        labels = torch.cat([target.labels[~target.ignore] for target in self.targets])
        return labels.bincount(minlength=number + 1)[1:].tolist()

    def soft_loss(self, rois: Sequence[Rois], first: int) -> Tensor:
        """The classification loss, float32 [*], of images from number `first` on.

        Cross-entropy of the student's class probabilities with the teacher's, for the very
        proposals that the student learns from, each seen in its own view. So a proposal counts as
        background as far as the teacher takes it for that. Divided by the image's samples, as the
        loss by labels is; what is hidden in either view counts 0.
        """
        size, own = self.strong.images.shape[-2:], range(first, first + len(rois))
        boxes = [self.strong.images.new_zeros(0, 4) for _ in self.targets]
        kept = []
        for number, roi in zip(own, rois, strict=True):
            weak, strong = self.weak.frames[number], self.strong.frames[number]
            original = to_original(roi.boxes, strong)
            moved, known = into_view(original, weak, size, rounded=True)
            known &= into_view(original, strong, size, rounded=True)[1]
            boxes[number] = moved[known]
            kept.append(roi.logits[known])
        with torch.no_grad():
            probs = self.model.roi_heads.class_probs(self.seen, boxes)
        losses = [
            F.cross_entropy(logits, probs[number], reduction="sum") / max(len(roi.boxes), 1)
            for number, roi, logits in zip(own, rois, kept, strict=True)
        ]
        return torch.stack(losses)


class BoxCounts:
    """How many boxes a teacher gives, epoch by epoch, and how right they are where it is known."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._names = tuple(class_names)
        # Images, those of a teacher that followed its student; boxes by class.
        self._sums = torch.zeros(2 + len(self._names), dtype=torch.float64)
        self._graded = torch.zeros(len(self._names), 5, dtype=torch.float64)
        self._before: list[float] | None = None

    def begin_epoch(self) -> None:
        """Compare with the epoch that is over from now on."""
        images, followed, *boxes = self._sums.tolist()
        # What two teachers find is no growth.
        self._before = [images, sum(boxes)] if images and followed == images else None
        self._sums, self._graded = torch.zeros_like(self._sums), torch.zeros_like(self._graded)

    def add(self, sums: Tensor, graded: Tensor) -> None:
        """Take in a step: images, those followed and boxes by class; what `graded` says of them."""
        self._sums += sums
        self._graded += graded

    def values(self) -> dict[str, float | None]:
        """Boxes per image of the epoch so far and their quality; UserError where they have doubled.

        They have where an image gets more than twice as many as in the epoch before, beyond chance
        (two standard deviations of Poisson counts), and both epochs had a teacher that follows
        its student: what it finds has then begun to feed on itself.
        """
        images, followed, *boxes = self._sums.tolist()
        if not images:
            return {}
        if self._before is not None and followed == images:
            factor = 2 * images / self._before[0]
            expected = factor * self._before[1]
            # Of the difference, if the rate had just doubled.
            noise = math.sqrt(factor * (sum(boxes) + self._before[1]))
            if sum(boxes) > expected + CHANCE * noise:
                raise UserError(
                    f"the mean teacher gives {sum(boxes) / images:.2f} boxes an image after "
                    f"{expected / (2 * images):.2f} in the epoch before: its student learns from "
                    "its own mistakes. Start a run with a lower ssl_settings.weight, with "
                    'ssl_settings.teacher_fixed 1.0, or with ssl_settings.mode "offline"'
                )
        values: dict[str, float | None] = {"teacher_boxes": sum(boxes) / images}
        for name, number, row in zip(self._names, boxes, self._graded.tolist(), strict=True):
            values[f"teacher_boxes/{name}"] = number / images
            if any(row):
                quality = Quality.of(row)._asdict()
                values |= {f"teacher_{key}/{name}": value for key, value in quality.items()}
        return values

    def state_dict(self) -> dict[str, Any]:
        """What an identical continuation needs."""
        return {
            "sums": self._sums.tolist(),
            "graded": self._graded.tolist(),
            "before": self._before,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        # An older program saved two losses behind the sums, and no grades.
        sums = state["sums"][: len(self._sums)]
        self._sums = torch.tensor(sums, dtype=torch.float64)
        self._graded = torch.tensor(state.get("graded", self._graded.tolist()), dtype=torch.float64)
        self._before = state["before"]
