"""RetinaNet: classes and boxes straight from the anchors of every level.

Shape shorthand: B images, L levels, N anchors of an image, K classes with background (which has a
column, as in torchvision, that learns to be 0), Q positive anchors of the whole batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, clip_boxes_to_image, sigmoid_focal_loss
from torchvision.ops import remove_small_boxes as large_enough

from med_sslal.base.types import ModelOutput
from med_sslal.model.detector import Detector, Found, Seen, check_finite
from med_sslal.model.targets import Truth, class_quality, match
from med_sslal.utils.errors import UserError


def _rows(hidden: nn.Module, last: nn.Module, levels: Sequence[Tensor], width: int) -> Tensor:
    """[B, N, width] from maps: the wide layers in low precision, the last one not."""
    rows = []
    for level in levels:
        features = hidden(level)
        with torch.autocast(features.device.type, enabled=False):
            values = last(features.float())
        rows.append(values.unflatten(1, (-1, width)).permute(0, 3, 4, 1, 2).flatten(1, 3))
    return torch.cat(rows, 1)


class DenseHead(RetinaNetHead):
    """torchvision's RetinaNet head whose outputs are fp32 under autocast."""

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        """Compute logits [B, N, K] and deltas [B, N, 4] of all levels, by torchvision's names."""
        classes, boxes = self.classification_head, self.regression_head
        return {
            "cls_logits": _rows(classes.conv, classes.cls_logits, x, classes.num_classes),
            "bbox_regression": _rows(boxes.conv, boxes.bbox_reg, x, 4),
        }


class OneStageDetector(Detector):
    """A detector that classifies and refines anchors.

    Nothing in it is drawn at random. It has neither proposals nor RoI features: those fields of
    Detections are zero.
    """

    def __init__(
        self,
        *,
        anchor_generator: AnchorGenerator,
        head: DenseHead,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
        topk_candidates: int,
        **shared: Any,
    ) -> None:
        """Put the parts together, with torchvision's matching thresholds.

        Args:
            anchor_generator: Anchors of every level.
            head: Feature levels to logits and deltas.
            score_thresh: Detections need a higher score.
            nms_thresh: IoU above which the lower score of a class is dropped.
            detections_per_img: Most detections of an image.
            topk_candidates: Best candidates of a level that go into the NMS.
            **shared: Of every family (see Detector).
        """
        super().__init__(**shared)
        self.anchor_generator = anchor_generator
        self.head = head
        self._matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self._box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self._score_thresh, self._nms_thresh = score_thresh, nms_thresh
        self._n_detections, self._n_candidates = detections_per_img, topk_candidates

    @classmethod
    def abilities(cls, args: Mapping[str, Any]) -> frozenset[str]:
        """What there is without proposals."""
        return frozenset({"class_probs", "class_quality", "views"})

    def compilable(self) -> tuple[nn.Module, ...]:
        """The backbone and the head; the rest depends on how many boxes there are."""
        return self.backbone, self.head

    def look(self, seen: Seen) -> ModelOutput:
        """Classify and refine the anchors."""
        levels = list(seen.features.values())
        with seen.low_precision():
            outputs = self.head(levels)
        logits, deltas = outputs["cls_logits"], outputs["bbox_regression"]
        # They take the dtype of the maps that they are made for; all images share one set.
        anchors = self.anchor_generator(seen.images, [level.float() for level in levels])[0]
        losses: dict[str, Tensor] = {}
        quality = None
        if seen.truths is not None:
            losses, quality = self._losses(logits, deltas, anchors, seen.truths)
        if self.training:
            return ModelOutput(losses, [], quality)
        check_finite(seen, logits, deltas)
        if self.extras.head_passes:
            raise UserError("passes with dropout need RoI heads, which RetinaNet does not have")
        n_anchors = self.anchor_generator.num_anchors_per_location()[0]
        sizes = [level[0, 0].numel() * n_anchors for level in levels]
        found = [
            self._detect(of_image, boxes, anchors, sizes, shape)
            for of_image, boxes, shape in zip(logits, deltas, seen.images.image_sizes, strict=True)
        ]
        return ModelOutput(losses, self.finish(seen, found))

    def _losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, truths: Sequence[Truth]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Focal loss and L1 as in torchvision, by the image's positives; the class quality."""
        matches = [match(self._matcher, truth, anchors) for truth in truths]
        states = torch.stack([state for _, state in matches])
        images, row = torch.where(states == 1)
        boxes_of = [matched[state == 1] for matched, state in matches]
        goals, label, regress = (
            torch.cat(
                [getattr(truth, name)[of] for truth, of in zip(truths, boxes_of, strict=True)]
            )
            for name in ("boxes", "labels", "regress")
        )
        wanted = torch.zeros_like(logits)
        wanted[images, row, label] = 1.0
        focal = sigmoid_focal_loss(logits, wanted).sum(2)
        of_positives, sources = deltas[images, row], anchors[row]
        distance = F.l1_loss(
            of_positives, self._box_coder.encode_single(goals, sources), reduction="none"
        ).sum(1)
        sums = distance.new_zeros(len(truths)).index_add(0, images, distance * regress)
        divisors = (states == 1).sum(1).clamp(min=1)
        losses = {
            "loss_classifier": (focal * (states >= 0)).sum(1) / divisors,
            "loss_box_reg": sums / divisors,
        }
        with torch.no_grad():
            quality = class_quality(
                logits[images, row, label].sigmoid(),
                self._box_coder.decode_single(of_positives, sources),
                goals,
                (images, label),
                (len(truths), self.num_classes - 1),
            )
        return losses, quality

    def _detect(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        sizes: list[int],
        shape: tuple[float, float],
    ) -> Found:
        """Detections of one image, as torchvision's but for boxes without area.

        One flat index over (anchor, foreground class) goes through every step, and everything is
        gathered by it at the end. A foreground class has its share of the sigmoid scores times the
        best of them; the rest is background's.
        """
        index, of_levels, start = [], [], 0
        for level in logits.split(sizes):
            # Level by level, as torchvision does: a vectorised sigmoid rounds by place.
            of_levels.append(level.sigmoid()[:, 1:])
            scores = of_levels[-1].flatten()
            above = torch.where(scores > self._score_thresh)[0]
            best = scores[above].topk(min(len(above), self._n_candidates))[1]
            index.append(above[best] + start)
            start += len(scores)
        probs = torch.cat(of_levels)
        n_foreground, flat = probs.shape[1], probs.flatten()
        kept = torch.cat(index)
        rows = kept // n_foreground
        boxes = self._box_coder.decode_single(deltas[rows], anchors[rows])
        boxes = clip_boxes_to_image(boxes, shape)
        whole = large_enough(boxes, min_size=1e-2)
        boxes, kept, rows = boxes[whole], kept[whole], rows[whole]
        labels, scores = kept % n_foreground + 1, flat[kept]
        best = batched_nms(boxes, scores, labels, self._nms_thresh)[: self._n_detections]
        of_rows = probs[rows[best]]
        top = of_rows.amax(1, keepdim=True)
        shares = top * of_rows / of_rows.sum(1, keepdim=True)
        class_probs = torch.cat([1 - top, shares], 1)
        return Found(boxes[best], labels[best], scores[best], class_probs)
