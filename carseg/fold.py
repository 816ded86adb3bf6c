"""Batch norm folded into convolutions: what prediction computes, in half the passes over memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from carseg.u2net import ConvBNReLU, U2Net

BLOCK = 32  # channels that processors multiply at once; others than multiples of it are slower


class Tripled(nn.Module):
    """A convolution that keeps its precision where bfloat16 is all that an engine computes in.

    Weights are sums of three bfloat16 numbers that read the same inputs; those of the bias read
    ones, and more ones fill a block up. Engines add products up in float32, so that only the result
    is rounded.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over a convolution with a bias and a kernel of odd sides."""
        super().__init__()
        assert conv.bias is not None
        height, width = (int(side) for side in conv.kernel_size)
        middle = torch.zeros(conv.out_channels, 3, height, width)
        middle[:, :, height // 2, width // 2] = torch.stack(terms(conv.bias), dim=1)
        weight = torch.cat([*terms(conv.weight), middle], dim=1)
        unread = torch.zeros(conv.out_channels, -weight.shape[1] % BLOCK, height, width)
        weight = torch.cat([weight, unread], dim=1)
        self.ones = 3 + unread.shape[1]
        self.conv = nn.Conv2d(
            weight.shape[1],
            conv.out_channels,
            (height, width),
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            bias=False,
        )
        self.conv.weight.data = weight

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        ones = torch.ones_like(x[:, :1]).expand(-1, self.ones, -1, -1)
        found: Tensor = self.conv(torch.cat([x, x, x, ones], dim=1))
        return found


def terms(values: Tensor) -> list[Tensor]:
    """Give three tensors of numbers that bfloat16 holds, whose sum is `values`, largest first."""
    found = []
    rest = values.detach().float()
    for _ in range(3):
        found.append(rest.bfloat16().float())
        rest = rest - found[-1]
    return found


def fold(net: U2Net) -> U2Net:
    """Give a copy in eval mode, without batch norms, that computes the same.

    Layers that must be exact (`U2Net.keep_exact`) stay so under any number format.
    """
    folded = copy.deepcopy(net).eval()
    folded.keep_exact()
    for layer in folded.modules():
        if isinstance(layer, ConvBNReLU):
            conv = fuse_conv_bn_eval(layer.conv_s1, layer.bn_s1)
            layer.conv_s1 = Tripled(conv) if layer.exact else conv  # type: ignore[assignment]
            layer.bn_s1 = nn.Identity()  # type: ignore[assignment]
            layer.exact = False
    return folded
