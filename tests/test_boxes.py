"""Overlaps and pairs of boxes, against loops and torchvision."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_area, box_iou

from med_sslal.utils.boxes import areas, paired_intersection, paired_iou, pairs


def boxes(n: int, seed: int) -> np.ndarray:
    corners = np.random.default_rng(seed).random((n, 2, 2)) * 50
    return np.sort(corners, axis=1).reshape(n, 4)


def test_overlaps_are_torchvisions() -> None:
    first, second = boxes(60, 0), boxes(60, 1)
    a, b = torch.from_numpy(first), torch.from_numpy(second)
    np.testing.assert_allclose(areas(first), box_area(a).numpy())
    iou = box_iou(a, b).diagonal().numpy()
    np.testing.assert_allclose(paired_iou(first, second), iou)
    union = areas(first) + areas(second) - paired_intersection(first, second)
    np.testing.assert_allclose(paired_intersection(first, second), iou * union)
    assert paired_iou(np.zeros((2, 4)), np.zeros((2, 4))).tolist() == [0.0, 0.0]
    assert areas(np.array([[5, 5, 3, 9]])).tolist() == [0.0], "an edge beyond its opposite"


@pytest.mark.parametrize("at_once", [1, 7, 500])
@pytest.mark.parametrize(
    ("n", "k"), [(30, 40), (0, 5), (5, 0), (0, 0)], ids=["many", "no row", "no other", "nothing"]
)
def test_pairs_of_equal_keys(n: int, k: int, at_once: int) -> None:
    generator = np.random.default_rng(3)
    keys, others = generator.integers(0, 6, n), generator.integers(0, 6, k)
    blocks = list(pairs(keys, others, at_once))
    found = [pair for rows, cols in blocks for pair in zip(rows, cols, strict=True)]
    assert found == [(i, j) for i in range(n) for j in range(k) if keys[i] == others[j]]
    seen = [set(rows.tolist()) for rows, _ in blocks]
    assert sum(map(len, seen)) == len(set().union(*seen)), "all pairs of a row in one block"
