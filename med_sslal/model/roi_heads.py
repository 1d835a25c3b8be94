"""The second stage: classes and boxes of the proposals, and its losses per image.

Shape shorthand: B images, R candidates (proposals, then true boxes where losses are computed) of
the whole batch, N detections of an image, C classes with background, F length of the RoI features,
Q sampled positives of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads as StockRoIHeads
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from med_sslal.base.types import Rois
from med_sslal.model.detector import Found, Seen
from med_sslal.model.nms import kept_rows
from med_sslal.model.targets import Sampler, Samples, class_quality, draw_samples, stage_losses
from med_sslal.utils.util import stable_hash


class BoxHead(TwoMLPHead):
    """torchvision's two layers, [R, F] of pooled RoIs, each followed by dropout in training.

    In eval mode nothing is dropped, unless `sampled` is called. Without dropout it is the stock
    head; the parameters have the stock names in any case.
    """

    def __init__(self, in_channels: int, size: int, dropout: float) -> None:
        super().__init__(in_channels, size)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Compute the features [R, F] of pooled RoIs [R, ...]."""
        if not (self.training and self.dropout):
            return super().forward(x)
        hidden = F.dropout(self.first(x), self.dropout)
        return F.dropout(F.relu(self.fc7(hidden)), self.dropout)

    def first(self, pooled: Tensor) -> Tensor:
        """The first layer, before any dropout: [R, F] of pooled RoIs [R, ...]."""
        return F.relu(self.fc6(pooled.flatten(1)))

    def sampled(self, hidden: Tensor, masks: Tensor) -> Tensor:
        """Features [R, F] from the first layer's [R, F] under the masks [2, R, F]."""
        return F.relu(self.fc7(hidden * masks[0])) * masks[1]

    def mask(self, image_id: str, number: int) -> Tensor:
        """What pass `number` over an image drops: float32 [2, F] of 0 and 1 / (1 - dropout).

        It lies on the CPU. It is one network for all boxes of the image, so neither their number
        nor their order matters, and it depends on nothing but the arguments.
        """
        generator = torch.Generator().manual_seed(stable_hash("dropout", image_id, number))
        kept = torch.rand(2, self.fc7.out_features, generator=generator) >= self.dropout
        return kept / (1 - self.dropout)


class RoIHeads(StockRoIHeads):
    """torchvision's box head, with its thresholds, that keeps the row of every detection.

    Losses come per image, and in eval mode too where truths are given, from the same pass. For
    `limits` see Detector.
    """

    box_head: BoxHead

    def __init__(
        self,
        box_roi_pool: MultiScaleRoIAlign,
        box_head: BoxHead,
        box_predictor: nn.Module,
        batch_size_per_image: int,
        limits: tuple[float, float, int],
    ) -> None:
        # Foreground and background IoU, samples and share of positives, default box weights.
        sampling = (0.5, 0.5, batch_size_per_image, 0.25, None)
        super().__init__(box_roi_pool, box_head, box_predictor, *sampling, *limits)
        self.fg_bg_sampler = Sampler(batch_size_per_image, 0.25)

    def forward(
        self, seen: Seen, proposals: Sequence[Tensor], generators: Sequence[torch.Generator | None]
    ) -> tuple[
        list[Found], dict[str, Tensor], tuple[Tensor, Tensor], Tensor | None, tuple[Rois, ...]
    ]:
        """Classify and refine the proposals, B tensors float32 [*, 4].

        Losses are computed where the batch has truths (training mode needs them), with B private
        generators of the sampler, None for the global one.

        Returns:
            B results (none in training mode); losses by name, float32 [B]; the class logits and
            the deltas; the class quality and the RoIs of ModelOutput (None and none in eval mode).
        """
        candidates, samples = list(proposals), None
        if seen.truths is not None:
            truths = [truth.of_proposals for truth in seen.truths]
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
            boxes = sampled.split(samples.counts)
            _, logits, deltas = self._predict(seen, boxes)
            losses, quality = self._losses(logits, deltas, sampled, samples)
            rois = map(Rois, boxes, logits.split(samples.counts))
            return [], losses, (logits, deltas), quality, tuple(rois)
        roi_features, logits, deltas = self._predict(seen, candidates)
        losses = {}
        if samples is not None:
            rows = samples.rows
            sampled = torch.cat(candidates)[rows]
            losses, _ = self._losses(logits[rows], deltas[rows], sampled, samples)
        counts = [len(boxes) for boxes in candidates]
        parts = zip(
            proposals,
            roi_features.split(counts),
            logits.softmax(-1).split(counts),
            deltas.split(counts),
            seen.images.image_sizes,
            strict=True,
        )
        return [self._detect(*part) for part in parts], losses, (logits, deltas), None, ()

    def class_probs(self, seen: Seen, boxes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What is in B images' boxes, float32 [*, 4] in pixels of the given image: [*, C] each."""
        _, logits, _ = self._predict(seen, boxes)
        return logits.softmax(-1).split([len(of_image) for of_image in boxes])

    def sample(
        self, seen: Seen, results: Sequence[Found], numbers: Sequence[int]
    ) -> list[list[Found]]:
        """Look at the detections' proposals again, with dropout in the box head.

        Returns:
            B images' detections for each of the passes; rows are those of `results`, without
            another NMS.
        """
        counts = [len(result.labels) for result in results]
        sources = torch.cat([one.proposals for one in results if one.proposals is not None])
        labels = torch.cat([result.labels for result in results])
        owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        rows = torch.arange(len(labels), device=labels.device)
        with seen.low_precision():
            shapes = list(seen.images.image_sizes)
            pooled = self.box_roi_pool(seen.features, list(sources.split(counts)), shapes)
            hidden = self.box_head.first(pooled)
        passes = []
        for number in numbers:
            masks = torch.stack([self.box_head.mask(name, number) for name in seen.image_ids], 1)
            with seen.low_precision():
                sampled = self.box_head.sampled(hidden, masks[:, owners].to(hidden.device))
            logits, deltas = self.box_predictor(sampled.float())
            probs = logits.softmax(-1)
            columns = (
                results,
                self._decode(seen, deltas, labels, sources.split(counts)),
                probs[rows, labels].split(counts),
                probs.split(counts),
            )
            passes.append(
                [
                    Found(boxes, one.labels, scores, class_probs, one.proposals)
                    for one, boxes, scores, class_probs in zip(*columns, strict=True)
                ]
            )
        return passes

    def refine(self, seen: Seen, results: Sequence[Found]) -> list[Found]:
        """Look at the detections' own boxes, all of the batch at once, and add `refined_boxes`."""
        boxes = [result.boxes for result in results]
        _, _, deltas = self._predict(seen, boxes)
        labels = torch.cat([result.labels for result in results])
        refined = self._decode(seen, deltas, labels, boxes)
        return [
            replace(result, refined_boxes=own) for result, own in zip(results, refined, strict=True)
        ]

    def _decode(
        self, seen: Seen, deltas: Tensor, labels: Tensor, sources: Sequence[Tensor]
    ) -> list[Tensor]:
        """Boxes of one class for each RoI, cut at the border: B tensors [*, 4], deltas [R, 4C]."""
        rows = torch.arange(len(labels), device=labels.device)
        of_class = deltas.unflatten(1, (-1, 4))[rows, labels]
        boxes = self.box_coder.decode_single(of_class, torch.cat(list(sources)))
        parts = boxes.split([len(of_image) for of_image in sources])
        return [
            clip_boxes_to_image(part, shape)
            for part, shape in zip(parts, seen.images.image_sizes, strict=True)
        ]

    def _predict(self, seen: Seen, candidates: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """RoI features [R, F], logits [R, C] and deltas [R, 4C], all fp32."""
        with seen.low_precision():
            shapes = list(seen.images.image_sizes)
            roi_features = self.box_head(self.box_roi_pool(seen.features, list(candidates), shapes))
        roi_features = roi_features.float()
        logits, deltas = self.box_predictor(roi_features)
        return roi_features, logits, deltas

    def _losses(
        self, logits: Tensor, deltas: Tensor, sources: Tensor, samples: Samples
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Cross-entropy and smooth L1 as in torchvision; the class quality of ModelOutput."""
        positives = samples.positives
        labels = samples.labels[positives]
        of_class = deltas.view(*logits.shape, 4)[positives, labels]
        goals = self.box_coder.encode_single(samples.boxes, sources[positives])
        classification = F.cross_entropy(logits, samples.labels, reduction="none")
        classification, regression = stage_losses(samples, classification, of_class, goals)
        with torch.no_grad():
            quality = class_quality(
                logits[positives].softmax(-1).gather(1, labels[:, None])[:, 0],
                self.box_coder.decode_single(of_class, sources[positives]),
                samples.boxes,
                (samples.images[positives], labels),
                (len(samples.counts), logits.shape[1] - 1),
            )
        return {"loss_classifier": classification, "loss_box_reg": regression}, quality

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
        kept = kept_rows(
            flat_boxes[index],
            flat_scores[index],
            index % n_foreground + 1,
            self.nms_thresh,
            self.detections_per_img,
        )
        index = index[kept]
        rows = index // n_foreground
        return Found(
            flat_boxes[index],
            index % n_foreground + 1,
            flat_scores[index],
            probs[rows],
            proposals[rows],
            roi_features[rows],
        )
