"""3×3 convolutions with a quarter of the products, and their gradients: Winograd's F(4×4, 3×3).

The output is computed in tiles of 4×4 pixels, each from 6×6 pixels of the input. Input tiles and
kernels are transformed to 6×6 numbers; their 36 products replace the 144 of a plain convolution and
are transformed to the output (Lavin & Gray 2016, arXiv:1509.09308, section 4.3). Sums over channels
are matrix products. In float32 the relative error is some 10⁻⁶, three to ten times that of a plain
convolution, and a few 10⁻⁵ at most.

Inputs, outputs and their gradients are (N, H, W, C) here, contiguous; H and W are multiples of
`TILE`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 4  # side of an output tile
READ = TILE + 2  # side of the input tile that it is computed from
AT_ONCE = 800  # transformed tiles in memory at a time; as fast as all of them

# Of Lavin & Gray, equation 15, interpolating at 0, 1, -1, 2, -2 and infinity: B for pixels, G for
# kernels, A for results.
B_T = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float64,
)
G = (
    torch.tensor(
        [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
        dtype=torch.float64,
    )
    / 24
)
A_T = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    dtype=torch.float64,
)


def convolve(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Convolve (N, H, W, in) with kernels (out, 3, 3, in), zeros around, into (N, H, W, out)."""
    kernels = _transform_kernels(weight).permute(1, 2, 0)  # (36, in, out)
    for photos, band in pieces(x):
        pixels = _transform(B_T, _read(x[photos], band))
        target = out[photos, band]
        tiles = _transform_back(A_T, pixels @ kernels, target.shape)
        target.view(tiles.shape).copy_(tiles)


def gradients(x: Tensor, weight: Tensor, grad_output: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `convolve`'s input and weights from that of its output.

    Args:
        x: (N, H, W, in).
        weight: (out, 3, 3, in).
        grad_output: (N, H, W, out).

    Returns:
        Gradients (N, H, W, in) and (out, 3, 3, in).
    """
    kernels = _transform_kernels(weight).transpose(0, 1)  # (36, out, in)
    grad_kernels = torch.zeros_like(kernels, memory_format=torch.contiguous_format)
    grad_pixels = torch.zeros_like(x)
    for photos, band in pieces(x):
        given = grad_output[photos, band]
        results = _transform(A_T.T, given)  # (36, tiles, out)
        grad_kernels.baddbmm_(results.transpose(1, 2), _transform(B_T, _read(x[photos], band)))
        tiles = _transform_back(B_T.T, results @ kernels, given.shape)
        _add(tiles, grad_pixels[photos], band)
    grad_weight = _both_ways(G.T, x) @ grad_kernels.transpose(0, 1)  # (out, 9, in)
    return grad_pixels, grad_weight.view(weight.shape)


def pieces(x: Tensor) -> Iterator[tuple[slice, slice]]:
    """Divide (N, H, W, C) into photos and rows to compute at once: some photos, or rows of one."""
    count, height, width, _ = x.shape
    per_row = width // TILE
    together = max(1, AT_ONCE // (height // TILE * per_row))
    rows = TILE * max(1, AT_ONCE // per_row)
    for first in range(0, count, together):
        for top in range(0, height, rows):
            yield slice(first, first + together), slice(top, min(top + rows, height))


def _read(x: Tensor, band: slice) -> Tensor:
    """Return the pixels that a band of rows of results is computed from, zeros beyond the edges."""
    above, below = band.start == 0, band.stop == x.shape[1]
    rows = x[:, band.start - (not above) : band.stop + (not below)]
    return F.pad(rows, (0, 0, 1, 1, int(above), int(below)))


def _transform_kernels(weight: Tensor) -> Tensor:
    """Transform (out, 3, 3, in) to (out, 36, in)."""
    return _both_ways(G, weight) @ weight.reshape(len(weight), 9, -1)


def _both_ways(matrix: Tensor, like: Tensor) -> Tensor:
    """Return the matrix that does to a tile, flattened, what matrix @ tile @ matrix.T does."""
    return torch.kron(matrix, matrix).to(like.dtype)


def _transform(matrix: Tensor, x: Tensor) -> Tensor:
    """Transform tiles, (N, h, w, C), to (36, tiles, C): matrix @ tile @ matrix.T.

    Tiles have the side that the matrix (6, side) asks for, and begin every `TILE` pixels.
    """
    matrix = matrix.to(x.dtype)
    side = matrix.shape[1]
    count, height, _, channels = x.shape
    rows = x.unfold(2, side, TILE).transpose(-1, -2).reshape(-1, side, channels)
    rows = torch.bmm(matrix.expand(len(rows), -1, -1), rows).view(count, height, -1)
    columns = rows.unfold(1, side, TILE).transpose(-1, -2)  # (N, down, side, across * 6 * C)
    _, down, _, length = columns.shape
    out = x.new_empty(count, down, READ, length)
    for photo in range(count):  # tiles overlap, so photos are no batch that bmm could take
        torch.bmm(matrix.expand(down, -1, -1), columns[photo], out=out[photo])
    out = out.view(count, down, READ, -1, READ, channels)
    return out.permute(2, 4, 0, 1, 3, 5).reshape(READ * READ, -1, channels)


def _transform_back(matrix: Tensor, products: Tensor, shape: torch.Size) -> Tensor:
    """Transform (36, tiles, C) back to (N, down, side, across, side, C): matrix @ tile @ matrix.T.

    Args:
        matrix: (side, 6).
        products: (36, tiles, C).
        shape: of the results, (N, H, W, any).
    """
    matrix = matrix.to(products.dtype)
    side, channels = len(matrix), products.shape[-1]
    down, across = shape[1] // TILE, shape[2] // TILE
    rows = shape[0] * down  # of tiles
    each = matrix.expand(rows, -1, -1)
    products = products.view(READ, READ, rows, across * channels).transpose(1, 2)
    half = products.new_empty(READ, rows, side, across * channels)
    for i in range(READ):  # no batch that bmm could take, either
        torch.bmm(each, products[i], out=half[i])
    whole = torch.bmm(each, half.view(READ, rows, -1).transpose(0, 1))
    return whole.view(shape[0], down, side, side, across, channels).transpose(3, 4)


def _add(tiles: Tensor, x: Tensor, band: slice) -> None:
    """Add tiles (N, down, 6, across, 6, C) to a band of pixels x, (N, H, W, C), where they lie."""
    count, down, _, across, _, channels = tiles.shape
    beyond = READ - TILE  # pixels of the next tile that each one reads, too
    sums = x.new_zeros(count, down + 1, TILE, across + 1, TILE, channels)
    sums[:, :-1, :, :-1] += tiles[:, :, :TILE, :, :TILE]
    sums[:, :-1, :, 1:, :beyond] += tiles[:, :, :TILE, :, TILE:]
    sums[:, 1:, :beyond, :-1] += tiles[:, :, TILE:, :, :TILE]
    sums[:, 1:, :beyond, 1:, :beyond] += tiles[:, :, TILE:, :, TILE:]
    # The first row of them lies above the band, the first column beside the picture.
    whole = sums.view(count, TILE * (down + 1), TILE * (across + 1), channels)
    first, last = max(0, band.start - 1), min(x.shape[1], band.stop + 1)
    skipped = first - (band.start - 1)
    x[:, first:last] += whole[:, skipped : skipped + last - first, 1 : x.shape[2] + 1]
