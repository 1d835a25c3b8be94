"""Non-maximum suppression by class or level, no longer than it takes to know the best boxes."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms, remove_small_boxes


def kept_rows(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    nms_thresh: float,
    most: int,
    min_size: float = 1e-2,
) -> Tensor:
    """Rows of an image's boxes that stay, best first: with an area, and after NMS by group.

    Of boxes float32 [N, 4], scores [N] and groups int64 [N], such as classes; NMS drops the lower
    score of a group above the IoU `nms_thresh`, and `most` stay at most.
    """
    whole = remove_small_boxes(boxes, min_size)
    kept = _best_after_nms(boxes[whole], scores[whole], groups[whole], nms_thresh, most)
    return whole[kept]


def _best_after_nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, nms_thresh: float, most: int
) -> Tensor:
    """The first `most` rows of torchvision's `batched_nms`.

    Only a better box can drop a box. So on the CPU, where NMS takes time with the square of the
    number of boxes, the best few are looked at alone, and all of them only if too few of those
    stay.
    """
    few = most + most // 2
    # What is traced, as for an ONNX file, cannot hang on how many boxes stay.
    if boxes.device.type == "cpu" and len(boxes) > few and not torch.jit.is_tracing():
        rows = scores.argsort(descending=True, stable=True)[:few]
        stays = torch.zeros(len(boxes), dtype=torch.bool)
        for group in groups[rows].unique():
            own = rows[groups[rows] == group]
            stays[own[nms(boxes[own], scores[own], nms_thresh)]] = True
        kept = rows[stays[rows]]
        if len(kept) >= most:
            return kept[:most]
    return batched_nms(boxes, scores, groups, nms_thresh)[:most]
