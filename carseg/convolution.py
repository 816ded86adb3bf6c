"""3×3 convolutions that save a third of a training step in float32 on CPUs without AVX-512."""

from __future__ import annotations

from functools import cache
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from carseg import winograd

# From here on transforming costs less than the products that it saves.
SMALLEST, PAIRS, AREA = 64, 64 * 128, 400  # channels; pairs of channels; pixels
NARROW = 16  # with fewer channels matrix products are slow


class Conv3x3(nn.Conv2d):
    """3×3 convolution with zeros around: (N, in, H, W) to (N, out, H, W).

    In float32 on CPUs without AVX-512, with channels last, it may use `Conv3x3Function` instead of
    torch's convolution; results differ by rounding.

    Attributes:
        may_tile: allow Winograd tiles where they are faster; their rounding errors are larger.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
        self.may_tile = True

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, in, H, W)."""
        if not _is_supported(x):
            return super().forward(x)
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        dilation = self.dilation[0]
        by_tiles = self.may_tile and _tiles_pay(x, self.weight, dilation)
        if not (learns or by_tiles):
            return super().forward(x)
        out: Tensor = Conv3x3Function.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, dilation, by_tiles
        )
        return out


def _is_supported(x: Tensor) -> bool:
    """Return whether `Conv3x3Function` takes x; exported graphs hold torch's operators alone."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return (
        not (traced or torch.compiler.is_compiling())
        and x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and not _has_avx512()
    )


@cache
def _has_avx512() -> bool:
    """Return whether torch uses AVX-512, with which its own convolutions are the fastest."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class Conv3x3Function(torch.autograd.Function):
    """Convolve by Winograd tiles where there are many channels, elsewhere with torch.

    Without tiles the weight gradient is `weight_gradient`, from `NARROW` channels on: torch is
    slow at it with channels last.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, dilation: int, by_tiles: bool
    ) -> Tensor:
        """Return (N, out, H, W)."""
        ctx.save_for_backward(x, weight)
        ctx.way = dilation, by_tiles  # type: ignore[attr-defined]
        if not by_tiles:
            return F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
        shape = (len(x), len(weight), *x.shape[2:])
        # Not a view of what was computed, as those who read it may change it in place.
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        winograd.convolve(_nhwc(x), _nhwc(weight).contiguous(), _nhwc(out))
        return out.add_(bias.view(-1, 1, 1))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: FunctionCtx, grad_output: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Return the gradients of the input, the weights and the bias."""
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_output = grad_output.contiguous(memory_format=torch.channels_last)
        dilation, by_tiles = ctx.way  # type: ignore[attr-defined]
        needs_grad_input: bool = ctx.needs_input_grad[0]  # type: ignore[attr-defined]
        with torch.autocast("cpu", enabled=False):  # as it was on the way here
            grad_input, grad_weight = _gradients(
                x, weight, grad_output, dilation, by_tiles, needs_grad_input
            )
        return grad_input, grad_weight, grad_output.sum((0, 2, 3)), None, None


def _gradients(
    x: Tensor,
    weight: Tensor,
    grad_output: Tensor,
    dilation: int,
    by_tiles: bool,
    needs_grad_input: bool,
) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of the input, where it is needed, and of the weights."""
    if by_tiles:
        out = winograd.gradients(_nhwc(x), _nhwc(weight).contiguous(), _nhwc(grad_output))
        return _nchw(out[0]), _nchw(out[1])
    wide = x.shape[1] >= NARROW
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output,
        x,
        weight,
        bias_sizes=None,
        stride=[1, 1],
        padding=[dilation, dilation],
        dilation=[dilation, dilation],
        transposed=False,
        output_padding=[0, 0],
        groups=1,
        output_mask=[needs_grad_input, not wide, False],
    )
    if wide:
        grad_weight = _nchw(weight_gradient(_nhwc(x), _nhwc(grad_output), dilation))
    return grad_input, grad_weight


def _tiles_pay(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Return whether Winograd tiles are faster, in both the forward and the backward pass."""
    outs, ins, _, _ = weight.shape
    height, width = x.shape[-2:]
    return (
        _multiplies_slowly()
        and dilation == 1
        and min(ins, outs) >= SMALLEST
        and ins * outs >= PAIRS
        and height * width >= AREA
        and height % winograd.TILE == width % winograd.TILE == 0
    )


@cache
def _multiplies_slowly() -> bool:
    """Return whether this processor multiplies so slowly that saving products pays.

    Measured with AVX2. Without MKL small matrix products are slow.
    """
    has_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return has_mkl and torch.backends.cpu.get_cpu_capability() == "AVX2"


def weight_gradient(x: Tensor, grad_output: Tensor, dilation: int) -> Tensor:
    """Compute the weight gradient of a 3×3 convolution, a matrix product per kernel position.

    Args:
        x: the input, (N, H, W, in).
        grad_output: of the output, (N, H, W, out).
        dilation: distance between kernel positions, in pixels.

    Returns:
        The gradient of the weights, (out, 3, 3, in).
    """
    ins, outs, ends = x.shape[-1], grad_output.shape[-1], 2 * dilation
    grad_weight = x.new_zeros(outs, 3, 3, ins)
    for photo, given in zip(x, grad_output, strict=True):
        # Padded to the same width, both are matrices of pixels; a kernel position is a row offset.
        padded = F.pad(photo, (0, 0, dilation, dilation, dilation, dilation))
        width = padded.shape[1]
        pixels = padded.view(-1, ins)
        results = F.pad(given, (0, 0, 0, ends, 0, ends)).view(-1, outs)
        for row, column in product(range(3), range(3)):
            start = dilation * (row * width + column)
            grad_weight[:, row, column].addmm_(results[: len(pixels) - start].T, pixels[start:])
    return grad_weight


def _nhwc(x: Tensor) -> Tensor:
    """View (N, C, H, W) as (N, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def _nchw(x: Tensor) -> Tensor:
    """View (N, H, W, C) as (N, C, H, W)."""
    return x.permute(0, 3, 1, 2)
