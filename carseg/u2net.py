"""U²-Net (Qin et al. 2020, Pattern Recognition 106, arXiv:2005.09007): a U whose blocks are Us.

Module names and their order are those of the authors' code, so that official checkpoints load
with `strict=True` and a walk over the convolutions follows the order in which they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from carseg.convolution import Conv3x3
from carseg.resize import resize

LIMIT = 64.0  # of constants that layers add; from here on bfloat16 is off by 0.25 and more


class Level(NamedTuple):
    """One level of the outer U: the RSU block that stands there."""

    height: int  # levels of the block's own U
    mid: int  # channels inside it
    out: int  # channels it gives
    dilated: bool = False  # True: widens its view by dilation, at one resolution


class Variant(NamedTuple):
    """A row a level: the encoder from the top down, the decoder from the bottom up."""

    encoder: tuple[Level, ...]
    decoder: tuple[Level, ...]


VARIANTS = {
    "u2net": Variant(
        encoder=(
            Level(7, 32, 64),
            Level(6, 32, 128),
            Level(5, 64, 256),
            Level(4, 128, 512),
            Level(4, 256, 512, dilated=True),
            Level(4, 256, 512, dilated=True),
        ),
        decoder=(
            Level(4, 256, 512, dilated=True),
            Level(4, 128, 256),
            Level(5, 64, 128),
            Level(6, 32, 64),
            Level(7, 16, 64),
        ),
    ),
    "u2netp": Variant(
        encoder=(
            Level(7, 16, 64),
            Level(6, 16, 64),
            Level(5, 16, 64),
            Level(4, 16, 64),
            Level(4, 16, 64, dilated=True),
            Level(4, 16, 64, dilated=True),
        ),
        decoder=(
            Level(4, 16, 64, dilated=True),
            Level(4, 16, 64),
            Level(5, 16, 64),
            Level(6, 16, 64),
            Level(7, 16, 64),
        ),
    ),
}


class ConvBNReLU(nn.Module):
    """3×3 convolution, batch norm, ReLU: (N, in, H, W), maybe in parts, → (N, out, H, W).

    Attributes:
        exact: compute in float32 also where autocast would not; see `U2Net.keep_exact`.
        exact_output: then also return float32, as the layer that reads it is exact, too.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv_s1 = Conv3x3(in_channels, out_channels, dilation)
        self.bn_s1 = nn.BatchNorm2d(out_channels)
        self.exact = self.exact_output = False

    def forward(self, *parts: Tensor) -> Tensor:
        """Return max(0, normalised convolution) of the parts, joined."""
        kind = parts[0].device.type
        if self.exact and torch.is_autocast_enabled(kind):
            x = join(*parts)
            with torch.autocast(kind, enabled=False):
                exact = self._compute(x.float())
            return exact if self.exact_output else exact.to(torch.get_autocast_dtype(kind))
        return self._compute(*parts)

    def _compute(self, *parts: Tensor) -> Tensor:
        x = join(*parts)
        with keep_apart(x, parts):
            x = self.conv_s1(x)
        x = self.bn_s1(x)
        # bfloat16 is changed in place at a third of the speed; in float32 that saves memory.
        return F.relu(x, inplace=x.dtype == torch.float32)

    def constants(self) -> Tensor:
        """Return the constant that eval mode adds to each channel's products, (out,), float32."""
        conv, norm = self.conv_s1, self.bn_s1
        assert conv.bias is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        return (norm.bias + (conv.bias - norm.running_mean) * scale).detach()


def keep_apart(joined: Tensor, parts: Sequence[Tensor]) -> AbstractContextManager[object]:
    """Make autograd save `parts`, not `joined`, and join them again in the backward pass.

    After Pleiss et al. 2017, arXiv:1707.06990. Saving both takes 0.4 GB in float32; in bfloat16
    there is room for that. Parts must not be changed in place afterwards: autograd would not
    notice.
    """
    if len(parts) == 1 or joined.dtype != torch.float32 or not joined.requires_grad:
        return nullcontext()
    maker = joined.grad_fn  # the hooks outlive this call, and `joined` must not

    def pack(kept: Tensor) -> Tensor | tuple[Tensor, ...]:
        return tuple(parts) if kept.grad_fn is maker else kept

    def unpack(kept: Tensor | tuple[Tensor, ...]) -> Tensor:
        return kept if isinstance(kept, Tensor) else join(*kept)

    return saved_tensors_hooks(pack, unpack)


def halve(x: Tensor) -> Tensor:
    """Apply 2×2 max pooling: (N, C, H, W) to (N, C, ⌈H/2⌉, ⌈W/2⌉)."""
    pool = partial(F.max_pool2d, kernel_size=2, ceil_mode=True)
    if x.dtype == torch.float32 and torch.is_grad_enabled():
        # Saving the indices of the maxima takes 0.1 GB; recomputing them is cheaper (gradient
        # checkpointing, Chen et al. 2016, arXiv:1604.06174).
        pool = partial(checkpoint, pool, use_reentrant=False, preserve_rng_state=False)
    return pool(x)


def join(*parts: Tensor) -> Tensor:
    """Concatenate features (N, C, h, w), resized to the last one's size: (N, sum of C, H, W)."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([resize(part, parts[-1].shape[-2:]) for part in parts], dim=1)


def u_shape(x: Tensor, net: nn.Module, name: str, pooled: Sequence[bool]) -> list[Tensor]:
    """Walk down the encoders `{name}1`, `{name}2`, …, then up the decoders …, `{name}1d` of `net`.

    Both a block and the whole net are such a U. `pooled[i]` says whether level i is entered at half
    the resolution. Gives the features of each level, the bottom's first.
    """
    skips: list[Tensor] = []
    for i, pool in enumerate(pooled, start=1):
        x = net.get_submodule(f"{name}{i}")(halve(x) if pool else x)
        skips.append(x)
    features = [skips.pop()]
    for i in range(len(skips), 0, -1):
        features.append(net.get_submodule(f"{name}{i}d")(features[-1], skips.pop()))
    return features


class RSU(nn.Module):
    """Residual U-block: (N, in, H, W), maybe in parts, → (N, level.out, H, W).

    Paper, section 3.1.
    """

    def __init__(self, in_channels: int, level: Level) -> None:
        super().__init__()
        height, mid, out, dilated = level
        self.rebnconvin = ConvBNReLU(in_channels, out)
        for i in range(1, height + 1):
            dilation = 2 ** (i - 1) if dilated else 2 if i == height else 1
            self.add_module(f"rebnconv{i}", ConvBNReLU(out if i == 1 else mid, mid, dilation))
        for i in range(height - 1, 0, -1):
            dilation = 2 ** (i - 1) if dilated else 1
            self.add_module(f"rebnconv{i}d", ConvBNReLU(2 * mid, out if i == 1 else mid, dilation))
        self.height = height
        # The top is entered at full resolution, the bottom dilated instead of pooled.
        self.pooled = [not dilated and 1 < i < height for i in range(1, height + 1)]

    def forward(self, *parts: Tensor) -> Tensor:
        """Return the sum of local features and what the inner U makes of them."""
        x: Tensor = self.rebnconvin(*parts)
        return u_shape(x, self, "rebnconv", self.pooled)[-1] + x


class U2Net(nn.Module):
    """U²-Net: photos (N, 3, H, W), normalised, to logits (N, 7, H, W).

    Channel 0 is the fused output, the one to predict with; 1…6 are the side outputs, finest
    first, which deep supervision trains as well (paper, equation 1). Values are logits: sigmoid
    belongs to losses, prediction and export.
    """

    def __init__(self, variant: str = "u2net") -> None:
        """Build the net with fresh weights.

        Raises:
            KeyError: `variant` is not a key of `VARIANTS`.
        """
        super().__init__()
        encoder, decoder = VARIANTS[variant]
        channels = 3
        for i, level in enumerate(encoder, start=1):
            self.add_module(f"stage{i}", RSU(channels, level))
            channels = level.out
        self.depth = len(encoder)
        widths = [channels]
        for i, level in zip(range(self.depth - 1, 0, -1), decoder, strict=True):
            self.add_module(f"stage{i}d", RSU(channels + encoder[i - 1].out, level))
            channels = level.out
            widths.append(channels)
        for i, width in enumerate(reversed(widths), start=1):
            self.add_module(f"side{i}", Conv3x3(width, 1))
        self.outconv = nn.Conv2d(self.depth, 1, 1)
        self.variant = variant
        self.pooled = [i > 1 for i in range(1, self.depth + 1)]

    def keep_exact(self) -> None:
        """Choose, by the current weights, which layers compute in float32 even under autocast.

        Where a layer adds a large constant to its sums of products, all pixels have nearly that
        value, and their differences are small. In the official small weights one layer gives 228 ±
        1 in one channel, where bfloat16 numbers are 1 apart, and the bias of the next one subtracts
        1337 from sums of products that are as large, where they are 8 apart. In the full weights
        there are two such pairs of layers: 72 and 185, 123 and 203.
        """
        for block in self.modules():
            if isinstance(block, RSU):
                layers = [layer for layer in block.modules() if isinstance(layer, ConvBNReLU)]
                for layer in layers:
                    layer.exact = bool(layer.constants().abs().max() > LIMIT)
                    layer.conv_s1.may_tile = not layer.exact
                    layer.exact_output = False
                # Each layer of a block is read by the next. A positive constant may offset negative
                # products; the output itself is large only if the next layer subtracts it again.
                for layer, reader in pairwise(layers):
                    layer.exact_output = reader.exact and bool(layer.constants().max() > LIMIT)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 7, H, W) of photos (N, 3, H, W)."""
        features = u_shape(x, self, "stage", self.pooled)
        sides = torch.cat(
            [
                resize(self.get_submodule(f"side{i}")(feature), x.shape[-2:])
                for i, feature in enumerate(reversed(features), start=1)
            ],
            dim=1,
        )  # (N, 6, H, W)
        return torch.cat((self.outconv(sides), sides), dim=1)
