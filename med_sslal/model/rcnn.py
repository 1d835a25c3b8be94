"""Faster R-CNN: proposals first, then their classes and boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from med_sslal.base.base_model import ABILITIES
from med_sslal.base.types import Detections, ModelOutput
from med_sslal.model.detector import Detector, Found, Seen, check_finite
from med_sslal.model.roi_heads import RoIHeads
from med_sslal.model.rpn import RegionProposals
from med_sslal.utils.errors import UserError


class TwoStageDetector(Detector):
    """A detector with a region proposal network and RoI heads.

    Samplers draw from the global generator as torchvision's do, or for a frame with a seed from
    one of its own. In eval mode losses are computed on the test-time proposals.
    """

    def __init__(
        self,
        *,
        rpn: RegionProposals,
        roi_heads: RoIHeads,
        top_proposals: int,
        **shared: Any,
    ) -> None:
        """Put the parts together.

        Args:
            rpn: Feature levels to proposals.
            roi_heads: Proposals to detections.
            top_proposals: Best proposals P that are handed out with each image.
            **shared: Of every family (see Detector).
        """
        super().__init__(**shared)
        self.rpn = rpn
        self.roi_heads = roi_heads
        self._n_top = top_proposals

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
        proposals, objectness, rpn_losses, rpn_logits = self.rpn(seen, generators)
        found, roi_losses, class_logits, class_quality = self.roi_heads(seen, proposals, generators)
        losses = {**roi_losses, **rpn_losses}
        if self.training:
            return ModelOutput(losses, [], class_quality)
        check_finite(seen, rpn_logits, class_logits)
        if "refined_boxes" in self.extras.columns:
            found = self.roi_heads.refine(seen, found)
        best = [
            (boxes[: self._n_top], scores[: self._n_top])
            for boxes, scores in zip(proposals, objectness, strict=True)
        ]
        detections = self.finish(seen, found, best)
        return ModelOutput(losses, detections, head_passes=self._passes(seen, found, detections))

    def _passes(
        self, seen: Seen, found: Sequence[Found], detections: Sequence[Detections]
    ) -> tuple[list[Detections], ...]:
        """The passes with dropout that are asked for."""
        numbers = self.extras.head_passes
        if not numbers:
            return ()
        if not self.roi_heads.box_head.dropout:
            raise UserError(
                "passes with dropout need arch.args.box_head_dropout above 0, found 0.0: train a "
                "detector with it"
            )
        passes = self.roi_heads.sample(seen, found, numbers)
        return tuple(
            [
                replace(
                    item,
                    boxes=seen.to_original(again.boxes, number),
                    scores=again.scores,
                    class_probs=again.class_probs,
                    roi_features=None,
                    refined_boxes=None,
                )
                for number, (item, again) in enumerate(zip(detections, one, strict=True))
            ]
            for one in passes
        )
