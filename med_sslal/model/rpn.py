"""The first stage: proposals with their objectness, and its losses per image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import clip_boxes_to_image

from med_sslal.model.detector import Seen
from med_sslal.model.nms import kept_rows
from med_sslal.model.targets import Sampler, Truth, draw_samples, stage_losses


class Float32RPNHead(RPNHead):
    """torchvision's RPN head whose logits and deltas are fp32 under autocast.

    Its wide convolution runs in low precision; the two narrow ones do not: bf16 logits would give
    many proposals the same objectness.
    """

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute objectness logits [B, A, h, w] and deltas [B, 4A, h, w] for every level."""
        logits, deltas = [], []
        for level in x:
            hidden = self.conv(level)
            with torch.autocast(hidden.device.type, enabled=False):
                hidden = hidden.float()
                logits.append(self.cls_logits(hidden))
                deltas.append(self.bbox_pred(hidden))
        return logits, deltas


class RegionProposals(RegionProposalNetwork):
    """torchvision's region proposal network, with its thresholds, that keeps the objectness.

    Losses come per image, and in eval mode too where truths are given. The numbers of proposals
    are by "training" and "testing".
    """

    def __init__(
        self,
        anchor_generator: AnchorGenerator,
        head: RPNHead,
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
    ) -> None:
        super().__init__(
            anchor_generator,
            head,
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            nms_thresh=0.7,
        )
        self.proposal_matcher: Matcher
        self.fg_bg_sampler = Sampler(256, 0.5)

    def forward(
        self, seen: Seen, generators: Sequence[torch.Generator | None]
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Propose boxes, with B private generators of the sampler, None for the global one.

        Returns:
            B proposals float32 [R, 4], best first; B objectness float32 [R] in [0, 1]; losses by
            name, float32 [B]; the objectness logits of all anchors, float32 [B * N, 1], and their
            deltas [B * N, 4].
        """
        levels = list(seen.features.values())
        with seen.low_precision():
            logits, deltas = self.head(levels)
        # Anchors take the dtype of the maps that they are made for: the fp32 logits.
        anchors = self.anchor_generator(seen.images, logits)
        n_per_level = [level[0].numel() for level in logits]
        flat_logits, flat_deltas = concat_box_prediction_layers(logits, deltas)
        proposals = self.box_coder.decode(flat_deltas.detach(), anchors)
        proposals = proposals.view(len(anchors), -1, 4)
        boxes, objectness = self.filter_proposals(
            proposals, flat_logits, seen.images.image_sizes, n_per_level
        )
        losses = {}
        if seen.truths is not None:
            losses = self._losses(flat_logits, flat_deltas, anchors, seen.truths, generators)
        return boxes, objectness, losses, (flat_logits, flat_deltas)

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best proposals of each image after NMS by level, as torchvision's are.

        Of proposals float32 [B, N, 4] and logits [B * N, 1] in the order of the levels; returns
        boxes float32 [R, 4] and objectness float32 [R] in [0, 1] for every image, best first.
        """
        logits = objectness.detach().view(len(proposals), -1)
        level_of = torch.cat(
            [
                torch.full((n,), level, device=logits.device)
                for level, n in enumerate(num_anchors_per_level)
            ]
        )
        rows = self._get_top_n_idx(logits, num_anchors_per_level)
        of_images = logits.gather(1, rows).sigmoid()
        found, scores_of_found = [], []
        for image, (own, scores) in enumerate(zip(rows, of_images, strict=True)):
            boxes = clip_boxes_to_image(proposals[image, own], image_shapes[image])
            kept = kept_rows(
                boxes, scores, level_of[own], self.nms_thresh, self.post_nms_top_n(), self.min_size
            )
            found.append(boxes[kept])
            scores_of_found.append(scores[kept])
        return found, scores_of_found

    def _losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: list[Tensor],
        truths: Sequence[Truth],
        generators: Sequence[torch.Generator | None],
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and smooth L1 as in torchvision, divided by the image's samples."""
        samples = draw_samples(
            self.proposal_matcher, self.fg_bg_sampler, truths, anchors, generators
        )
        wanted = (samples.labels > 0).to(logits.dtype)
        objectness = F.binary_cross_entropy_with_logits(
            logits.flatten()[samples.rows], wanted, reduction="none"
        )
        positive_rows = samples.rows[samples.positives]
        # All images share one set of anchors.
        sources = anchors[0][positive_rows % len(anchors[0])]
        goals = self.box_coder.encode_single(samples.boxes, sources)
        objectness, regression = stage_losses(samples, objectness, deltas[positive_rows], goals)
        return {"loss_objectness": objectness, "loss_rpn_box_reg": regression}
