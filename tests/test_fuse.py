"""Folded nets compute what those with batch norms do, also in bfloat16."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, uneven
from torch import nn

from carseg import weights
from carseg.fuse import Lowered, Tripled, fuse_batch_norm, terms
from carseg.u2net import LIMIT, U2Net


def test_a_folded_net_computes_the_same_without_batch_norms() -> None:
    net = uneven(U2Net("u2netp"))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    folded = fuse_batch_norm(net)
    photos = noise(2, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(folded(photos), net(photos), rtol=1e-4, atol=1e-3)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_tripled_convolution_is_exact_where_bfloat16_is_not(dilation: int) -> None:
    conv = nn.Conv2d(4, 5, 3, padding=dilation, dilation=dilation)
    x = (noise(1, 4, 12, 10) + 60).bfloat16()
    with torch.inference_mode():
        conv.weight.copy_(noise(5, 4, 3, 3, seed=1) + 0.7)
        # Takes away nearly all of what the products add up to.
        conv.bias.copy_(-nn.functional.conv2d(x.float(), conv.weight).mean(dim=(0, 2, 3)))
        expected = conv(x.float())[..., 2:-2, 2:-2]
        rough = conv.bfloat16()(x).float()[..., 2:-2, 2:-2]
    conv = nn.Conv2d(4, 5, 3, padding=dilation, dilation=dilation)
    with torch.inference_mode():
        conv.weight.copy_(noise(5, 4, 3, 3, seed=1) + 0.7)
        conv.bias.copy_(-nn.functional.conv2d(x.float(), conv.weight).mean(dim=(0, 2, 3)))
        found = Tripled(conv).bfloat16()(x).float()[..., 2:-2, 2:-2]
        torch.testing.assert_close(
            Tripled(conv)(x.float())[..., 2:-2, 2:-2], expected, rtol=1e-3, atol=0.05
        )
    limit = 0.01 * float(expected.abs().max())
    assert float((found - expected).abs().max()) < limit
    assert float((rough - expected).abs().max()) > 3 * limit


def test_a_lowered_layer_is_exact_where_another_channel_subtracts_a_large_constant() -> None:
    conv = nn.Conv2d(4, 2, 3, padding=1)
    x = (noise(1, 4, 12, 10) + 60).bfloat16()
    with torch.inference_mode():
        conv.weight.copy_(noise(2, 4, 3, 3, seed=1))
        conv.weight[1] += 0.7
        products = nn.functional.conv2d(x.float(), conv.weight)
        conv.bias.copy_(torch.tensor([2 * LIMIT, 1 - float(products[:, 1].mean())]))
        assert conv.bias[1] < -LIMIT
        lowered = Lowered(conv)
        expected = torch.relu(conv(x.float())) - lowered.constant.view(1, -1, 1, 1)
        torch.testing.assert_close(lowered(x.float()), expected, rtol=1e-3, atol=1e-3)
        found = lowered.bfloat16()(x).float()
    inside = np.s_[:, 1, 1:-1, 1:-1]
    spread = float(expected[inside].std())
    assert spread > 0.1
    assert float((found - expected)[inside].abs().max()) < 0.02 * spread


@pytest.mark.parametrize("variant", ["u2netp", "u2net"])
def test_constants_that_are_left_out_are_added_again_also_at_the_edges(variant: str) -> None:
    net = uneven(U2Net(variant))
    with torch.no_grad():
        for block, below, above in (
            (net.stage2d, "rebnconv2d", "rebnconv1d"),
            (net.stage4, "rebnconv4", "rebnconv3d"),
        ):
            giving, reading = block.get_submodule(below), block.get_submodule(above)
            giving.bn_s1.bias[::3] = torch.linspace(130, 260, len(giving.bn_s1.bias[::3]))
            reading.bn_s1.running_mean[0] += 1000
            reading.bn_s1.bias[0] -= LIMIT  # whatever the spread that it is divided by
    folded = fuse_batch_norm(net)
    kinds = [type(layer) for layer in folded.modules()]
    assert kinds.count(Lowered) == kinds.count(Tripled) == 2
    photos = noise(2, 3, 64, 96)
    with torch.inference_mode():
        expected = net(photos)
        torch.testing.assert_close(
            folded(photos), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        )


def test_terms_are_numbers_of_bfloat16_that_add_up() -> None:
    values = 1000 * noise(50)
    found = terms(values)
    assert all(torch.equal(term, term.bfloat16().float()) for term in found)
    torch.testing.assert_close(sum(found), values, rtol=1e-7, atol=0)
    assert float((found[0] - values).abs().max()) > 1e-4


@pytest.mark.parametrize("variant", ["u2netp", "u2net"])
def test_published_small_weights_need_two_tripled_layers(variant: str, official: Path) -> None:
    net = weights.start(variant, official, seed=0)
    folded = fuse_batch_norm(net)
    assert sum(isinstance(layer, Tripled) for layer in folded.modules()) == 2
    photos = noise(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(
            torch.sigmoid(folded(photos)), torch.sigmoid(net.eval()(photos)), rtol=0, atol=1e-3
        )
