"""A z-buffer in numpy: which triangle is in front at which sample."""

from collections.abc import Callable

import numpy as np

from carseg.sample.arrays import Bools, Floats, Ints

# (triangle numbers, barycentric coordinates (n, 3)) -> True where the surface has a hole.
HoleTest = Callable[[Ints, Floats], Bools]

_FRAGMENTS_AT_ONCE = 400_000
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)


def rasterise(
    screen: Floats,
    depth: Floats,
    triangle: Ints,
    size: tuple[int, int],
    *,
    cull: bool = True,
    is_hole: HoleTest | None = None,
) -> tuple[Ints, Floats]:
    """Render triangle numbers.

    screen: (n, 2) vertex positions in samples, x to the right and y down; sample (i, j) has its
    centre at (i + 0.5, j + 0.5). depth: (n,), linear on the screen, smaller is nearer (for a
    perspective view: minus the reciprocal of the distance). size: (width, height) in samples.
    Returns the triangle in front, (height, width), -1 where there is none, and its depth.
    """
    width, height = size
    low, high = float(depth.min()), float(depth.max())
    scale = (2.0**31 - 1) / max(high - low, 1e-9)
    buffer = np.full(width * height, _EMPTY, np.uint64)

    x, y = screen[:, 0][triangle], screen[:, 1][triangle]
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    # First and last sample whose centre lies within the bounding box.
    x0 = np.clip(np.ceil(x.min(1) - 0.5), 0, width).astype(np.int64)
    x1 = np.clip(np.floor(x.max(1) - 0.5) + 1, 0, width).astype(np.int64)
    y0 = np.clip(np.ceil(y.min(1) - 0.5), 0, height).astype(np.int64)
    y1 = np.clip(np.floor(y.max(1) - 0.5) + 1, 0, height).astype(np.int64)
    wide, count = x1 - x0, (x1 - x0) * (y1 - y0)
    # Screen y points down, so a counter-clockwise triangle has a negative area here.
    keep = (x1 > x0) & (y1 > y0) & ((area < -1e-9) if cull else (np.abs(area) > 1e-9))
    chosen = np.flatnonzero(keep)

    # Barycentric coordinates are linear on the screen: slope along x, along y, and at (0, 0).
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = []
        for b, c in ((1, 2), (2, 0)):
            along, down = (y[:, b] - y[:, c]) / area, (x[:, c] - x[:, b]) / area
            offset = (x[:, b] * y[:, c] - x[:, c] * y[:, b]) / area
            slope += [along, down, offset + 0.5 * (along + down)]
    corner_depth = depth[triangle]
    total = np.cumsum(count[chosen])
    start = 0
    while start < len(chosen):
        before = total[start - 1] if start else 0
        stop = max(int(np.searchsorted(total, before + _FRAGMENTS_AT_ONCE)), start + 1)
        block = chosen[start:stop]
        start = stop
        number = np.repeat(block, count[block])
        first = np.cumsum(count[block]) - count[block]
        local = np.arange(len(number)) - np.repeat(first, count[block])
        row = local // wide[number]
        column = local - row * wide[number] + x0[number]
        row += y0[number]
        first_weight = slope[0][number] * column + slope[1][number] * row + slope[2][number]
        second_weight = slope[3][number] * column + slope[4][number] * row + slope[5][number]
        third_weight = 1 - first_weight - second_weight
        inside = np.flatnonzero(
            np.minimum(np.minimum(first_weight, second_weight), third_weight) >= -1e-9
        )
        number = number[inside].astype(np.int32)
        weight = np.stack([w[inside] for w in (first_weight, second_weight, third_weight)], 1)
        pixel = row[inside] * width + column[inside]
        if is_hole is not None and len(number):
            solid = ~is_hole(number, weight)
            number, weight, pixel = number[solid], weight[solid], pixel[solid]
        z = np.einsum("ij,ij->i", weight, corner_depth[number])
        key = ((z - low) * scale).clip(0, 2.0**31 - 1).astype(np.uint64)
        np.minimum.at(buffer, pixel, (key << np.uint64(32)) | number.astype(np.uint64))

    empty = buffer == _EMPTY
    hit = np.where(empty, -1, (buffer & np.uint64(0xFFFFFFFF)).astype(np.int64)).astype(np.int32)
    z_buffer = np.where(empty, np.inf, (buffer >> np.uint64(32)).astype(float) / scale + low)
    return hit.reshape(height, width), z_buffer.reshape(height, width)


def barycentric(screen: Floats, triangle: Ints, px: Floats, py: Floats) -> Floats:
    """Screen-space barycentric coordinates (n, 3) of points in triangles (n, 3)."""
    x, y = screen[:, 0][triangle], screen[:, 1][triangle]
    area = (x[:, 1] - x[:, 0]) * (y[:, 2] - y[:, 0]) - (x[:, 2] - x[:, 0]) * (y[:, 1] - y[:, 0])
    dx, dy = x - px[:, None], y - py[:, None]
    weight = np.empty_like(dx)
    weight[:, 0] = (dx[:, 1] * dy[:, 2] - dx[:, 2] * dy[:, 1]) / area
    weight[:, 1] = (dx[:, 2] * dy[:, 0] - dx[:, 0] * dy[:, 2]) / area
    weight[:, 2] = 1 - weight[:, 0] - weight[:, 1]
    return weight
