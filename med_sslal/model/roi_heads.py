"""The second stage: classes and boxes of the proposals, and its losses per image.

Shape shorthand: B images, R candidates (proposals, then true boxes where losses are computed) of
the whole batch, N detections of an image, C classes with background, F length of the RoI features,
Q sampled positives of the whole batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads as StockRoIHeads
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image
from torchvision.ops import remove_small_boxes as large_enough

from med_sslal.model.box_head import BoxHead
from med_sslal.model.detector import Found
from med_sslal.model.targets import (
    Sampler,
    Samples,
    Truth,
    class_quality,
    draw_samples,
    sum_per_image,
)


class RoIHeads(StockRoIHeads):
    """torchvision's box head that keeps the row of every detection.

    Losses come per image, and in eval mode too where truths are given, from the same pass.
    """

    box_head: BoxHead

    def __init__(
        self,
        box_roi_pool: MultiScaleRoIAlign,
        box_head: BoxHead,
        box_predictor: nn.Module,
        *,
        batch_size_per_image: int,
        score_thresh: float,
        nms_thresh: float,
        detections_per_img: int,
    ) -> None:
        """Make it with torchvision's matching thresholds.

        Args:
            box_roi_pool: Cuts RoIs out of the feature maps.
            box_head: RoIs to [R, F], with dropout on request.
            box_predictor: [R, F] to logits [R, C] and deltas [R, 4C].
            batch_size_per_image: Candidates that are sampled for the losses.
            score_thresh: Detections need a higher score.
            nms_thresh: IoU above which the lower score of a class is dropped.
            detections_per_img: Most detections of an image.
        """
        super().__init__(
            box_roi_pool,
            box_head,
            box_predictor,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=batch_size_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
            detections_per_img=detections_per_img,
        )
        self.fg_bg_sampler = Sampler(batch_size_per_image, 0.25)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        image_shapes: Sequence[tuple[float, float]],
        truths: Sequence[Truth] | None = None,
        generators: Sequence[torch.Generator | None] = (),
        dtype: torch.dtype | None = None,
    ) -> tuple[list[Found], dict[str, Tensor], Tensor, Tensor | None]:
        """Classify and refine the proposals.

        Args:
            features: Level name to [B, channels, h, w].
            proposals: B tensors float32 [*, 4].
            image_shapes: B valid (height, width).
            truths: B labels; losses are computed where they are given (training mode needs them).
            generators: B private generators of the sampler, None for the global one.
            dtype: Low precision of pooling and box head, None for fp32.

        Returns:
            B results (none in training mode); losses by name, float32 [B]; the class logits; the
            class quality of ModelOutput (None in eval mode).
        """
        candidates, samples = list(proposals), None
        if truths is not None:
            candidates = [
                torch.cat([boxes, truth.boxes])
                for boxes, truth in zip(proposals, truths, strict=True)
            ]
            samples = draw_samples(
                self.proposal_matcher, self.fg_bg_sampler, truths, candidates, generators
            )
        if self.training:
            assert samples is not None
            sampled = torch.cat(candidates)[samples.rows]
            _, logits, deltas = self._predict(
                features, sampled.split(samples.counts), image_shapes, dtype
            )
            losses = self._losses(logits, deltas, sampled, samples)
            return [], losses, logits, self._class_quality(logits, deltas, sampled, samples)
        roi_features, logits, deltas = self._predict(features, candidates, image_shapes, dtype)
        losses = {}
        if samples is not None:
            rows = samples.rows
            losses = self._losses(logits[rows], deltas[rows], torch.cat(candidates)[rows], samples)
        counts = [len(boxes) for boxes in candidates]
        parts = zip(
            proposals,
            roi_features.split(counts),
            logits.softmax(-1).split(counts),
            deltas.split(counts),
            image_shapes,
            strict=True,
        )
        return [self._detect(*part) for part in parts], losses, logits, None

    def sample(
        self,
        features: dict[str, Tensor],
        results: Sequence[Found],
        image_shapes: Sequence[tuple[float, float]],
        image_ids: Sequence[str],
        numbers: Sequence[int],
        dtype: torch.dtype | None = None,
    ) -> list[list[Found]]:
        """Look at the detections' proposals again, with dropout in the box head.

        Args:
            features: Level name to [B, channels, h, w].
            results: B images' detections.
            image_shapes: B valid (height, width).
            image_ids: B ids, part of the seed.
            numbers: Of the passes, the other part.
            dtype: Low precision of pooling and box head, None for fp32.

        Returns:
            One list of B entries per pass; rows are those of `results`, without another NMS.
        """
        counts = [len(result.labels) for result in results]
        sources = torch.cat([one.proposals for one in results if one.proposals is not None])
        labels = torch.cat([result.labels for result in results])
        owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        rows = torch.arange(len(labels), device=labels.device)
        island = torch.autocast(labels.device.type, dtype=dtype, enabled=dtype is not None)
        with island:
            boxes_of = list(sources.split(counts))
            hidden = self.box_head.first(self.box_roi_pool(features, boxes_of, list(image_shapes)))
        passes = []
        for number in numbers:
            masks = torch.stack([self.box_head.mask(name, number) for name in image_ids], 1)
            with island:
                sampled = self.box_head.sampled(hidden, masks[:, owners].to(hidden.device))
            logits, deltas = self.box_predictor(sampled.float())
            probs = logits.softmax(-1)
            of_class = deltas.view(*logits.shape, 4)[rows, labels]
            parts = zip(
                self.box_coder.decode_single(of_class, sources).split(counts),
                labels.split(counts),
                probs[rows, labels].split(counts),
                probs.split(counts),
                image_shapes,
                strict=True,
            )
            passes.append(
                [
                    Found(clip_boxes_to_image(boxes, shape), *of_image)
                    for boxes, *of_image, shape in parts
                ]
            )
        return passes

    def _predict(
        self,
        features: dict[str, Tensor],
        candidates: Sequence[Tensor],
        image_shapes: Sequence[tuple[float, float]],
        dtype: torch.dtype | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """RoI features [R, F], logits [R, C] and deltas [R, 4C], all fp32."""
        device = candidates[0].device
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            pooled = self.box_roi_pool(features, list(candidates), list(image_shapes))
            roi_features = self.box_head(pooled)
        roi_features = roi_features.float()
        logits, deltas = self.box_predictor(roi_features)
        return roi_features, logits, deltas

    def _losses(
        self, logits: Tensor, deltas: Tensor, sources: Tensor, samples: Samples
    ) -> dict[str, Tensor]:
        """Cross-entropy and smooth L1 as in torchvision, divided by the image's samples."""
        classification = F.cross_entropy(logits, samples.labels, reduction="none")
        positives = samples.positives
        of_class = deltas.view(*logits.shape, 4)[positives, samples.labels[positives]]
        goals = self.box_coder.encode_single(samples.boxes, sources[positives])
        regression = F.smooth_l1_loss(of_class, goals, beta=1 / 9, reduction="none").sum(1)
        return {
            "loss_classifier": sum_per_image(classification, samples.counts, samples.counts),
            "loss_box_reg": sum_per_image(
                regression * samples.regress, samples.positive_counts, samples.counts
            ),
        }

    @torch.no_grad()
    def _class_quality(
        self, logits: Tensor, deltas: Tensor, sources: Tensor, samples: Samples
    ) -> Tensor:
        """How well the sampled positives are found, by image and class (see ModelOutput)."""
        positives = samples.positives
        labels = samples.labels[positives]
        probs = logits[positives].softmax(-1).gather(1, labels[:, None])[:, 0]
        of_class = deltas.view(*logits.shape, 4)[positives, labels]
        boxes = self.box_coder.decode_single(of_class, sources[positives])
        images = torch.arange(len(samples.counts)).repeat_interleave(
            torch.tensor(samples.positive_counts)
        )
        places = images.to(labels.device, non_blocking=True), labels
        shape = (len(samples.counts), logits.shape[1] - 1)
        return class_quality(probs, boxes, samples.boxes, places, shape)

    def _detect(
        self,
        proposals: Tensor,
        roi_features: Tensor,
        probs: Tensor,
        deltas: Tensor,
        shape: tuple[float, float],
    ) -> Found:
        """Detections of one image; rows beyond the proposals (true boxes) are left out.

        One flat index over (proposal, foreground class) goes through every step, and everything
        is gathered by it at the end.
        """
        n, n_foreground = len(proposals), probs.shape[1] - 1
        probs = probs[:n]
        boxes = self.box_coder.decode_single(deltas[:n], proposals)
        boxes = clip_boxes_to_image(boxes.view(n, n_foreground + 1, 4), shape)
        flat_boxes = boxes[:, 1:].reshape(-1, 4)
        flat_scores = probs[:, 1:].reshape(-1)
        index = torch.where(flat_scores > self.score_thresh)[0]
        index = index[large_enough(flat_boxes[index], min_size=1e-2)]
        labels = index % n_foreground + 1
        kept = batched_nms(flat_boxes[index], flat_scores[index], labels, self.nms_thresh)
        kept = kept[: self.detections_per_img]
        index, labels = index[kept], labels[kept]
        rows = index // n_foreground
        return Found(
            flat_boxes[index],
            labels,
            flat_scores[index],
            probs[rows],
            proposals[rows],
            roi_features[rows],
        )
