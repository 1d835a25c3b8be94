"""Frozen norms: torchvision's layer as one operation, and inside the convolution before it."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from med_sslal.model.backbone import BACKBONES
from med_sslal.model.norm import FastFrozenNorm, fold_frozen_norms


def test_fast_frozen_norm_is_the_stock_layer():
    generator = torch.Generator().manual_seed(0)
    stock, fast = FrozenBatchNorm2d(8, eps=1e-5), FastFrozenNorm(8, eps=1e-5)
    for buffer in stock.buffers():
        buffer.uniform_(0.3, 2.0, generator=generator)
    fast.load_state_dict(stock.state_dict(), strict=True)
    x = torch.randn(2, 8, 5, 5, generator=generator)
    torch.testing.assert_close(fast(x), stock(x), atol=1e-6, rtol=1e-5)
    assert fast(x.bfloat16()).dtype == torch.bfloat16
    assert not list(fast.parameters())


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3_large"])
def test_frozen_norms_are_computed_inside_convolutions(name):
    torch.manual_seed(0)
    spec = BACKBONES[name]
    plain = spec.build(norm_layer=partial(FastFrozenNorm, eps=spec.norm_eps))
    for buffer in plain.buffers():
        buffer.uniform_(0.5, 1.5)
    folded = deepcopy(plain)
    fold_frozen_norms(folded)
    assert list(folded.state_dict()) == list(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    outputs = [network(x) for network in (plain, folded)]
    largest = outputs[0].detach().abs().max().item()
    torch.testing.assert_close(*outputs, atol=1e-4 * largest, rtol=1e-4)
    for output in outputs:
        (output / largest).square().mean().backward()
    for one, other in zip(plain.parameters(), folded.parameters(), strict=True):
        torch.testing.assert_close(
            one.grad, other.grad, atol=1e-3 * one.grad.abs().max().item(), rtol=1e-3
        )
    # No norm is computed by itself.
    alone = []
    for layer in folded.modules():
        if isinstance(layer, FastFrozenNorm):
            layer.register_forward_hook(lambda *_: alone.append(1))
    folded(x)
    assert not alone


def test_norms_that_learn_are_left_alone():
    network = BACKBONES["mobilenet_v2"].build(norm_layer=nn.BatchNorm2d)
    fold_frozen_norms(network)
    before = network[0][1].running_mean.clone()
    network(torch.rand(2, 3, 64, 64))
    assert not torch.equal(before, network[0][1].running_mean)
