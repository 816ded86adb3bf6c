"""Bilinear resize, with a gradient that keeps pace with the convolutions around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

TAPS = torch.tensor([0.25, 0.75, 0.75, 0.25])  # what a pixel gives to the four of twice the size


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to (N, C, *size)."""
    old, new = tuple(x.shape[-2:]), tuple(size)
    if old == new:
        return x
    doubled = new == (2 * old[0], 2 * old[1])
    if doubled and x.device.type == "cpu" and x.requires_grad and torch.is_grad_enabled():
        found: Tensor = Double.apply(x)  # type: ignore[no-untyped-call]
        return found
    return F.interpolate(x, size=new, mode="bilinear", align_corners=False)


class Double(torch.autograd.Function):
    """Resize (N, C, h, w) to twice the size, as `F.interpolate` does.

    Its gradient is a depthwise convolution of stride 2. On processors torch computes the same
    20 times slower, a tenth of a training step.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        """Give (N, C, 2h, 2w)."""
        last = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        ctx.layout = layout  # type: ignore[attr-defined]
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """Give the gradient (N, C, h, w) of what came in."""
        channels = gradient.shape[1]
        gradient = gradient.clone(memory_format=ctx.layout)  # type: ignore[attr-defined]
        for edge in (gradient[..., 0, :], gradient[..., -1, :]):
            edge *= 4 / 3  # beyond the edge the pixel at it is seen again
        for edge in (gradient[..., 0], gradient[..., -1]):
            edge *= 4 / 3
        taps = (TAPS[:, None] * TAPS).to(gradient.dtype).expand(channels, 1, 4, 4).contiguous()
        return F.conv2d(gradient, taps, stride=2, padding=1, groups=channels)
