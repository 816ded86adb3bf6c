"""Batch norm folded into convolutions: what prediction computes, in half the passes over memory."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from carseg.u2net import LIMIT, RSU, ConvBNReLU, U2Net, join

BLOCK = 32  # channels that processors multiply at once; counts between its multiples are slower


class Lowered(nn.Module):
    """A convolution and ReLU that omit a constant of each channel: max(0, conv) - constant.

    In an engine that computes in bfloat16 alone, values around a large constant lose their
    differences. The layer that reads these adds the constant again (`Tripled`).

    Attributes:
        constant: (C,), exact in bfloat16; 0 where a channel adds no large one.
    """

    constant: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over a convolution with a bias."""
        super().__init__()
        assert conv.bias is not None
        bias = conv.bias.detach()
        constant = torch.where(bias > LIMIT, bias, 0).bfloat16().float()
        rest = copy.deepcopy(conv)
        rest.bias = nn.Parameter(bias - constant)
        # A large negative constant cannot be left out: what it offsets is in the products.
        self.conv = Tripled(rest) if bool(rest.bias.abs().max() > LIMIT) else rest
        self.register_buffer("constant", constant)

    def forward(self, *parts: Tensor) -> Tensor:
        """Compute on parts (N, C, H, W), joined."""
        found: Tensor = self.conv(join(*parts))
        return torch.maximum(found, -self.constant.view(1, -1, 1, 1).to(found.dtype))


class Tripled(nn.Module):
    """A convolution that keeps its precision where bfloat16 is all that an engine computes in.

    Each weight is split into three bfloat16 terms (Henry et al. 2019, arXiv:1904.06376), applied to
    three copies of the input. The bias and what `constant` contributes are weights, too, applied to
    channels of ones; more such channels pad to a multiple of `BLOCK`. Engines accumulate in
    float32, so only the result is rounded.
    """

    def __init__(self, conv: nn.Conv2d, constant: Tensor | None = None) -> None:
        """Take over a convolution with a bias and a kernel of odd sides.

        Args:
            conv: what to compute.
            constant: (C,), what to add to the channels that it reads, but not beyond the edges.
        """
        super().__init__()
        assert conv.bias is not None
        weight = conv.weight.detach()
        height, width = (int(side) for side in conv.kernel_size)
        # Per kernel position, as the ones are zero-padded, too: beyond the edges nothing is added.
        same = torch.zeros_like(weight[:, 0])  # (out, kernel, kernel)
        if constant is not None:
            same = (weight * constant.view(1, -1, 1, 1)).sum(dim=1)
        same[:, height // 2, width // 2] += conv.bias.detach()
        weight = torch.cat([*terms(weight), torch.stack(terms(same), dim=1)], dim=1)
        unread = weight.new_zeros(conv.out_channels, -weight.shape[1] % BLOCK, height, width)
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
    """Split float32 values into three addends that bfloat16 holds exactly, largest first."""
    found = []
    rest = values.detach().float()
    for _ in range(3):
        found.append(rest.bfloat16().float())
        rest = rest - found[-1]
    return found


def fuse_batch_norm(net: U2Net) -> U2Net:
    """Return a copy in eval mode, without batch norms, that computes the same.

    Layers that must be exact (`U2Net.keep_exact`) stay so under any number format. In two cases,
    which no official weights have, a large output is rounded: that of an encoder's layer other
    than the bottom one, and that of a decoder's layer which reads another one's large output.
    """
    folded = copy.deepcopy(net).eval()
    folded.keep_exact()
    for block in folded.modules():
        if isinstance(block, RSU):
            _lower(block)
    for layer in folded.modules():
        if isinstance(layer, ConvBNReLU) and isinstance(layer.bn_s1, nn.BatchNorm2d):
            conv = _conv(layer)
            _compute_with(layer, Tripled(conv) if layer.exact else conv)
    return folded


def _lower(block: RSU) -> None:
    """Move the constants of a block's layers with large outputs into the layers that read them.

    Those are the decoder's: each reads the output of the level below, then its skip connection.
    """
    for i in range(block.height - 1, 0, -1):
        below = f"rebnconv{i + 1}" if i + 1 == block.height else f"rebnconv{i + 1}d"
        giving, reading = block.get_submodule(below), block.get_submodule(f"rebnconv{i}d")
        assert isinstance(giving, ConvBNReLU)
        assert isinstance(reading, ConvBNReLU)
        if giving.exact_output:
            lowered = Lowered(_conv(giving))
            block.add_module(below, lowered)
            conv = _conv(reading)
            skip = lowered.constant.new_zeros(conv.in_channels - len(lowered.constant))
            _compute_with(reading, Tripled(conv, torch.cat((lowered.constant, skip))))


def _conv(layer: ConvBNReLU) -> nn.Conv2d:
    """Return a layer's convolution with its batch norm in it."""
    return fuse_conv_bn_eval(layer.conv_s1, layer.bn_s1)


def _compute_with(layer: ConvBNReLU, conv: nn.Module) -> None:
    """Replace a layer's convolution and batch norm with `conv`, which computes both."""
    layer.conv_s1 = conv  # type: ignore[assignment]
    layer.bn_s1 = nn.Identity()  # type: ignore[assignment]
    layer.exact = layer.exact_output = False
