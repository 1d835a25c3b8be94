"""The CPU's own RoI pooling against torchvision's."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from med_sslal.model.roi_pool import RoIPool

SIZES = ((96, 160), (96, 160), (96, 160))
STRIDES = (4, 8, 16)


def maps(strides: tuple[int, ...], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    height, width = SIZES[0]
    return {
        str(level): torch.rand(
            len(SIZES), 8, height // stride, width // stride, generator=generator
        ).to(dtype)
        for level, stride in enumerate(strides)
    }


def pool(kind: type[MultiScaleRoIAlign], strides: tuple[int, ...]) -> MultiScaleRoIAlign:
    if kind is RoIPool:
        return RoIPool(strides)
    made = kind([str(level) for level in range(len(strides))], 7, 2)
    # The stock class finds out from its first batch.
    made(maps(strides), [torch.tensor([[0.0, 0, 20, 20]])] * len(SIZES), list(SIZES))
    return made


def rois(n: int) -> list[Tensor]:
    """Boxes of all sizes, the last ones over every border."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(len(SIZES), n, 2, generator=generator) * torch.tensor([150.0, 90.0])
    sides = 2 + torch.rand(len(SIZES), n, 2, generator=generator) ** 3 * 150
    return list(torch.cat([corner, corner + sides], -1))


ROIS = {
    "all sizes, over the right and lower border": rois(40),
    "over the left and upper border": [torch.tensor([[-30.0, -9, 5, 7], [-4, -4, -1, -2]])] * 3,
    "the whole picture": [torch.tensor([[0.0, 0, 160, 96]])] * 3,
    "no area": [torch.tensor([[7.0, 9, 7, 9]])] * 3,
    "on cells' edges": [torch.tensor([[14.0, 14, 28, 28], [0, 0, 56, 56]])] * 3,
    "an image without RoIs": [rois(4)[0], torch.zeros(0, 4), rois(2)[1]],
    "no RoIs": [torch.zeros(0, 4)] * 3,
}


@pytest.mark.parametrize("strides", [STRIDES, (16,)], ids=["pyramid", "one level"])
@pytest.mark.parametrize("boxes", ROIS.values(), ids=ROIS)
def test_pools_and_learns_as_torchvision(boxes, strides):
    results = []
    for kind in (MultiScaleRoIAlign, RoIPool):
        features = {name: value.requires_grad_() for name, value in maps(strides).items()}
        pooled = pool(kind, strides).train()(features, boxes, list(SIZES))
        generator = torch.Generator().manual_seed(2)
        (pooled * torch.rand(pooled.shape, generator=generator)).sum().backward()
        results.append([pooled.detach(), *(value.grad for value in features.values())])
    for stock, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-5)


def test_low_precision_comes_back_in_its_dtype():
    boxes = rois(20)
    low = {name: value.bfloat16() for name, value in maps(STRIDES).items()}
    ours = pool(RoIPool, STRIDES).eval()(low, boxes, list(SIZES))
    assert ours.dtype == torch.bfloat16
    exact = {name: value.float() for name, value in low.items()}
    expected = pool(MultiScaleRoIAlign, STRIDES)(exact, boxes, list(SIZES))
    torch.testing.assert_close(ours.float(), expected, atol=1e-3, rtol=2**-8)


def test_channels_last_are_pooled_fast_and_plain_maps_to_the_bit():
    boxes, plain = rois(20), maps(STRIDES)
    expected = pool(MultiScaleRoIAlign, STRIDES)(plain, boxes, list(SIZES))
    ours = pool(RoIPool, STRIDES).eval()
    assert torch.equal(ours(plain, boxes, list(SIZES)), expected)
    last = {name: value.to(memory_format=torch.channels_last) for name, value in plain.items()}
    with torch.profiler.profile() as profile:
        found = ours(last, boxes, list(SIZES))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    names = {event.key for event in profile.key_averages()}
    assert any("embedding_bag" in name for name in names)
    assert "torchvision::roi_align" not in names


def test_an_roi_does_not_depend_on_its_batch_mates():
    boxes, features = rois(20), maps(STRIDES)
    together = pool(RoIPool, STRIDES).train()(features, boxes, list(SIZES)).split(20)
    for i, expected in enumerate(together):
        alone = {name: value[i : i + 1] for name, value in features.items()}
        assert torch.equal(pool(RoIPool, STRIDES)(alone, boxes[i : i + 1], [SIZES[i]]), expected)


def test_gradients_are_the_same_for_any_number_of_threads():
    gradients = []
    threads = torch.get_num_threads()
    for n in (1, 2, 1):
        torch.set_num_threads(n)
        features = {name: value.requires_grad_() for name, value in maps(STRIDES).items()}
        pool(RoIPool, STRIDES)(features, rois(60), list(SIZES)).square().sum().backward()
        gradients.append([value.grad for value in features.values()])
    torch.set_num_threads(threads)
    for one, two, again in zip(*gradients, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, again)
