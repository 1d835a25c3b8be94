"""NMS that looks at the best boxes first keeps what torchvision's keeps."""

import pytest
import torch
from torchvision.ops import batched_nms, nms

from med_sslal.model import nms as own
from med_sslal.model.nms import kept_rows


def crowd(n: int, side: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """n boxes of 20 px whose corners lie in a square of `side` px, distinct scores, 4 groups."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(n, 2, generator=generator) * side
    boxes = torch.cat([corners, corners + 20], 1)
    scores = torch.randperm(n, generator=generator) / n
    return boxes, scores, torch.randint(4, (n,), generator=generator)


@pytest.mark.parametrize("threshold", [0.3, 0.7])
@pytest.mark.parametrize("side", [5.0, 100.0, 1000.0], ids=["heap", "crowd", "apart"])
@pytest.mark.parametrize("most", [1, 10, 100, 2000])
def test_the_best_are_those_of_all(most: int, side: float, threshold: float) -> None:
    for seed in range(10):
        boxes, scores, groups = crowd(1200, side, seed)
        wanted = batched_nms(boxes, scores, groups, threshold)[:most]
        assert torch.equal(kept_rows(boxes, scores, groups, threshold, most), wanted)


def test_boxes_without_an_area_are_none_of_them() -> None:
    boxes, scores, groups = crowd(300, 100.0, 0)
    boxes[scores > 0.9, 2:] = boxes[scores > 0.9, :2]
    rows = kept_rows(boxes, scores, groups, 0.5, 10)
    assert len(rows) == 10 and scores[rows].max() <= 0.9


def test_most_boxes_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counted(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        seen.append(len(boxes))
        return nms(boxes, scores, threshold)

    monkeypatch.setattr(own, "nms", counted)
    kept_rows(*crowd(1200, 1000.0, 0), 0.7, 100)
    assert sum(seen) == 150


def test_no_boxes() -> None:
    boxes, scores, groups = crowd(0, 1.0, 0)
    assert len(kept_rows(boxes, scores, groups, 0.5, 10)) == 0
