"""The families of detectors: Faster R-CNN with two stages, RetinaNet with one.

Shape shorthand: B images, L levels, N anchors of an image, K classes with background (which has a
column in RetinaNet too, as in torchvision, that learns to be 0), Q positive anchors of the whole
batch.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import clip_boxes_to_image, sigmoid_focal_loss

from med_sslal.base.base_model import ABILITIES
from med_sslal.base.types import Detections, ModelOutput
from med_sslal.model.detector import Count, Detector, Found, Seen, check_finite
from med_sslal.model.nms import kept_rows
from med_sslal.model.roi_heads import BoxHead, RoIHeads
from med_sslal.model.roi_pool import RoIPool
from med_sslal.model.rpn import Float32RPNHead, RegionProposals
from med_sslal.model.targets import Truth, class_quality, match
from med_sslal.utils.errors import UserError


class FasterRCNN(Detector):
    """Faster R-CNN, two stages, with or without a feature pyramid.

    Samplers draw from the global generator as torchvision's do, or for a frame with a seed from
    one of its own. In eval mode losses are computed on the test-time proposals.

    Args:
        rpn_pre_nms_top_n_train: Proposals per level before NMS in training.
        rpn_pre_nms_top_n_test: The same at test.
        rpn_post_nms_top_n_train: Proposals per image after NMS in training.
        rpn_post_nms_top_n_test: The same at test.
        box_batch_size_per_image: Proposals per image that the box head is trained on.
        box_head_size: Width of the box head, and length of the RoI features.
        box_head_dropout: Share of the box head's hidden values that training drops, and so do the
            passes of ensemble_disagreement; 0 = none.
        top_proposals: Best proposals that are handed out with each image.
        **shared: Of every family (see Detector).
    """

    pyramid_anchors: ClassVar = ((16,), (32,), (64,), (128,), (256,))

    def __init__(
        self,
        *,
        rpn_pre_nms_top_n_train: Count = 2000,
        rpn_pre_nms_top_n_test: Count = 1000,
        rpn_post_nms_top_n_train: Count = 2000,
        rpn_post_nms_top_n_test: Count = 1000,
        box_batch_size_per_image: Count = 512,
        box_head_size: Count = 1024,
        box_head_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        top_proposals: Count = 20,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        channels = self.backbone.out_channels
        self.rpn = RegionProposals(
            self.anchor_generator,
            Float32RPNHead(channels, self.anchor_generator.num_anchors_per_location()[0]),
            {"training": rpn_pre_nms_top_n_train, "testing": rpn_pre_nms_top_n_test},
            {"training": rpn_post_nms_top_n_train, "testing": rpn_post_nms_top_n_test},
        )
        pool = RoIPool(self.backbone.strides)
        self.roi_heads = RoIHeads(
            pool,
            BoxHead(channels * math.prod(pool.output_size), box_head_size, box_head_dropout),
            FastRCNNPredictor(box_head_size, self.num_classes),
            box_batch_size_per_image,
            self.limits,
        )
        self._n_top = top_proposals
        self.load_pretrained()

    @classmethod
    def abilities(cls, args: Mapping[str, Any]) -> frozenset[str]:
        """All of ABILITIES, `dropout` only with `box_head_dropout` above 0."""
        missing = () if args.get("box_head_dropout", 0.0) else ("dropout",)
        return frozenset(ABILITIES.keys() - missing)

    def compilable(self) -> tuple[nn.Module, ...]:
        """The backbone and the head of the RPN; the rest depends on how many boxes there are."""
        return self.backbone, self.rpn.head

    def look(self, seen: Seen) -> ModelOutput:
        """Propose, classify and refine."""
        generators = [] if seen.truths is None else self.generators(seen)
        proposals, objectness, rpn_losses, of_rpn = self.rpn(seen, generators)
        found, roi_losses, of_heads, quality, rois = self.roi_heads(seen, proposals, generators)
        losses = {**roi_losses, **rpn_losses}
        if self.training:
            return ModelOutput(losses, [], quality, rois=rois)
        check_finite(seen, *of_rpn, *of_heads)
        if "refined_boxes" in self.extras.columns:
            found = self.roi_heads.refine(seen, found)
        best = [
            (boxes[: self._n_top], scores[: self._n_top])
            for boxes, scores in zip(proposals, objectness, strict=True)
        ]
        passes: tuple[list[Detections], ...] = ()
        if self.extras.head_passes:
            if not self.roi_heads.box_head.dropout:
                raise UserError(
                    "passes with dropout need arch.args.box_head_dropout above 0, found 0.0: train "
                    "a detector with it"
                )
            again = self.roi_heads.sample(seen, found, self.extras.head_passes)
            passes = tuple(self.finish(seen, one, best) for one in again)
        return ModelOutput(losses, self.finish(seen, found, best), head_passes=passes)


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


class RetinaNet(Detector):
    """RetinaNet, one stage: classes and boxes from the anchors of every level.

    Nothing in it is drawn at random, and it matches by torchvision's thresholds. It has neither
    proposals nor RoI features: those fields of Detections are zero.

    Args:
        topk_candidates: Best candidates of a level that go into the NMS.
        **shared: Of every family (see Detector).
    """

    pyramid_anchors: ClassVar = tuple(
        (side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3)))
        for side in (16, 32, 64, 128, 256)
    )

    def __init__(self, *, topk_candidates: Count = 1000, **shared: Any) -> None:
        super().__init__(**shared)
        n_anchors = self.anchor_generator.num_anchors_per_location()[0]
        self.head = DenseHead(self.backbone.out_channels, n_anchors, self.num_classes)
        self._matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
        self._box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self._n_candidates = topk_candidates
        self.load_pretrained()

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
        none = (deltas.new_zeros(0, 4), deltas.new_zeros(0))
        return ModelOutput(losses, self.finish(seen, found, [none] * len(found)))

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
        score_thresh, nms_thresh, most = self.limits
        index, of_levels, start = [], [], 0
        for level in logits.split(sizes):
            # Level by level, as torchvision does: a vectorised sigmoid rounds by place.
            of_levels.append(level.sigmoid()[:, 1:])
            scores = of_levels[-1].flatten()
            above = torch.where(scores > score_thresh)[0]
            best = scores[above].topk(min(len(above), self._n_candidates))[1]
            index.append(above[best] + start)
            start += len(scores)
        probs = torch.cat(of_levels)
        n_foreground, flat = probs.shape[1], probs.flatten()
        kept = torch.cat(index)
        rows, labels, scores = kept // n_foreground, kept % n_foreground + 1, flat[kept]
        boxes = self._box_coder.decode_single(deltas[rows], anchors[rows])
        boxes = clip_boxes_to_image(boxes, shape)
        best = kept_rows(boxes, scores, labels, nms_thresh, most)
        of_rows = probs[rows[best]]
        top = of_rows.amax(1, keepdim=True)
        shares = top * of_rows / of_rows.sum(1, keepdim=True)
        class_probs = torch.cat([1 - top, shares], 1)
        return Found(boxes[best], labels[best], scores[best], class_probs)
