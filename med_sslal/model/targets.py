"""Labels as the two stages of the detector use them: matching, sampling, sums per image.

Shape shorthand: B images, M real boxes, K ignore boxes and N candidates (anchors or proposals) of
an image, S samples of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_area, box_iou
from torchvision.ops.boxes import _box_inter_union

from med_sslal.base.types import Target
from med_sslal.utils.errors import DataError

IGNORED_FRACTION = 0.5
# Weight of the probability against the IoU in the quality of a training box (PPAL, CVPR 2024).
QUALITY_EXPONENT = 0.6


@dataclass(frozen=True)
class Truth:
    """An image's label with the ignore regions apart, in the network's frame."""

    boxes: Tensor  # float32 [M, 4].
    labels: Tensor  # int64 [M].
    regress: Tensor  # float32 [M], 0 where the box teaches no regression, else 1.
    ignored: Tensor  # float32 [K, 4].
    soft: bool = False  # As of the Target.

    @property
    def of_proposals(self) -> "Truth":
        """As the second stage learns it."""
        return replace(self, ignored=self.ignored[:0]) if self.soft else self


def read_targets(
    targets: Sequence[Target], num_classes: int, names: Sequence[str] | None
) -> list[Truth]:
    """Check B labels on one device and split off their ignore regions; C classes with background.

    One transfer to the host for the whole batch, whatever its size. `names` are for messages.

    Raises:
        DataError: A label outside 1 to C - 1, or a box that is not finite or has no area.
    """
    boxes = torch.cat([target.boxes for target in targets])
    labels = torch.cat([target.labels for target in targets])
    ignore = torch.cat([target.ignore for target in targets])
    good_box = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    good_label = (labels >= 1) & (labels < num_classes)
    facts = torch.stack([ignore, good_box, good_label | ignore]).cpu()
    sizes = [len(target.labels) for target in targets]
    truths = []
    for i, (target, (is_ignored, box_ok, label_ok)) in enumerate(
        zip(targets, facts.split(sizes, 1), strict=True)
    ):
        name = names[i] if names else f"number {i + 1} of the batch"
        if not box_ok.all():
            found = target.boxes[~box_ok][0].tolist()
            raise DataError(
                f"image {name}: boxes must be finite xyxy of positive area, found {found}"
            )
        if not label_ok.all():
            raise DataError(
                f"image {name}: labels must lie in 1 to {num_classes - 1} (0 is background), "
                f"found {int(target.labels[~label_ok][0])}"
            )
        # The flags lie on the host, so nothing waits for a device.
        real, ignored = (
            (is_ignored == flag).nonzero()[:, 0].to(boxes.device) for flag in (False, True)
        )
        regress = target.regress.to(boxes.dtype)[real]
        truths.append(
            Truth(
                target.boxes[real],
                target.labels[real],
                regress,
                target.boxes[ignored],
                target.soft,
            )
        )
    return truths


def match(matcher: Matcher, truth: Truth, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Match candidates float32 [N, 4] with an image's boxes.

    A candidate on an ignore region counts as undecided unless a real box claims it: half of its
    own area or more lies in the region, or their IoU reaches the matcher's upper threshold.

    Returns:
        int64 [N] matched box (0 where there is none), and int64 [N]: 1 positive, 0 negative,
        -1 neither.
    """
    if len(truth.boxes):
        matched = matcher(box_iou(truth.boxes, candidates))
    else:
        matched = torch.full((len(candidates),), -1, device=candidates.device)
    state = (matched >= 0).to(torch.int64)
    state.masked_fill_(matched == matcher.BETWEEN_THRESHOLDS, -1)
    if len(truth.ignored):
        overlap, union = _box_inter_union(truth.ignored, candidates)
        inside = overlap >= IGNORED_FRACTION * box_area(candidates)
        covered = (inside | (overlap >= matcher.high_threshold * union)).any(0)
        state.masked_fill_(covered & (state == 0), -1)
    return matched.clamp(min=0), state


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler, giving indices, with a private generator on request.

    Without a generator it draws exactly what the stock sampler draws from the global one.
    """

    def sample(self, state: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Indices of positives and negatives of an image, at most `batch_size_per_image` together.

        `state` is int64 [N], 1 positive, 0 negative, -1 neither; the generator is one of its
        device, or None for the global one.
        """
        positive, negative = torch.where(state == 1)[0], torch.where(state == 0)[0]
        first, second = (
            torch.randperm(len(found), generator=generator, device=state.device)
            for found in (positive, negative)
        )
        kept = positive[first[: int(self.batch_size_per_image * self.positive_fraction)]]
        return kept, negative[second[: self.batch_size_per_image - len(kept)]]


@dataclass(frozen=True)
class Samples:
    """The sampled candidates of a batch; each image's positives stand before its negatives."""

    counts: tuple[int, ...]  # Samples of each image.
    rows: Tensor  # int64 [S] into the candidates of the batch, image after image.
    images: Tensor  # int64 [S], the image of each.
    positives: Tensor  # int64 [Q] into the samples.
    boxes: Tensor  # float32 [Q, 4], the box that each positive is to become.
    labels: Tensor  # int64 [S], 0 for negatives.
    regress: Tensor  # float32 [Q].


def draw_samples(
    matcher: Matcher,
    sampler: Sampler,
    truths: Sequence[Truth],
    candidates: Sequence[Tensor],
    generators: Sequence[torch.Generator | None],
) -> Samples:
    """Match and sample the candidates of a batch, B tensors [N, 4], image by image.

    The generators are private ones of the sampler, None for the global one.
    """
    counts: list[int] = []
    parts, first_row = [], 0
    for number, (truth, of_image, generator) in enumerate(
        zip(truths, candidates, generators, strict=True)
    ):
        matched, state = match(matcher, truth, of_image)
        positive, negative = sampler.sample(state, generator)
        rows, of_positive = torch.cat([positive, negative]), matched[positive]
        parts.append(
            (
                rows + first_row,
                torch.full_like(rows, number),
                torch.arange(len(positive), device=rows.device) + sum(counts),
                truth.boxes[of_positive],
                torch.cat([truth.labels[of_positive], torch.zeros_like(negative)]),
                truth.regress[of_positive],
            )
        )
        counts.append(len(rows))
        first_row += len(of_image)
    columns = (torch.cat(column) for column in zip(*parts, strict=True))
    return Samples(tuple(counts), *columns)


def class_quality(
    probs: Tensor,
    boxes: Tensor,
    goals: Tensor,
    places: tuple[Tensor, Tensor],
    shape: tuple[int, int],
) -> Tensor:
    """How well positives are found, float32 [B, C - 1, 2]; nothing here waits for the device.

    `probs` [Q] are those of the true class, `boxes` and `goals` float32 [Q, 4] decoded boxes and
    what they are to become, `places` image and label int64 [Q] of each, and `shape` (B, C - 1).
    """
    iou = paired_ious(boxes, goals)
    quality = probs**QUALITY_EXPONENT * iou ** (1 - QUALITY_EXPONENT)
    cells = places[0] * shape[1] + places[1] - 1
    entries = torch.stack([quality, torch.ones_like(quality)], 1)
    sums = entries.new_zeros(shape[0] * shape[1], 2).index_add(0, cells, entries)
    return sums.view(*shape, 2)


def paired_ious(first: Tensor, second: Tensor) -> Tensor:
    """IoU of box i with box i, float32 [N], of float32 [N, 4] each; NaN where both are empty."""
    upper_left = torch.maximum(first[:, :2], second[:, :2])
    lower_right = torch.minimum(first[:, 2:], second[:, 2:])
    overlap = (lower_right - upper_left).clamp(min=0).prod(1)
    return overlap / (box_area(first) + box_area(second) - overlap)


def stage_losses(
    samples: Samples, classification: Tensor, deltas: Tensor, goals: Tensor
) -> tuple[Tensor, Tensor]:
    """The two losses of a stage as in torchvision, divided by the image's samples.

    From float32 [S] classification losses of the samples, and [Q, 4] deltas of the positives with
    what they are to become: classification and smooth L1 regression, float32 [B] each.
    """
    regression = F.smooth_l1_loss(deltas, goals, beta=1 / 9, reduction="none").sum(1)
    scale = 1.0 / torch.tensor(samples.counts, dtype=deltas.dtype).clamp(min=1)
    scale = scale.to(deltas.device)

    def per_image(values: Tensor, images: Tensor) -> Tensor:
        return values.new_zeros(len(scale)).index_add(0, images, values) * scale

    of_positives = samples.images[samples.positives]
    return (
        per_image(classification, samples.images),
        per_image(regression * samples.regress, of_positives),
    )
