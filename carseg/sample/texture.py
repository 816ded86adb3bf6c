"""Procedural surfaces: road and pavement coverings, bricks, foliage.

Coordinates are metres on the surface, of shape (n,); `footprint` or `pixel` is the extent of one
pixel there, and detail finer than that fades out. Albedos are linear RGB of shape (n, 3).
"""

import numpy as np

from carseg.sample.arrays import Floats
from carseg.sample.light import colour, mix, smoothstep
from carseg.sample.noise import Noise


def stone(n: Noise, x: Floats, y: Floats, footprint: Floats, base: Floats) -> Floats:
    """Albedo of dressed stone or concrete around the colour `base`, (3,)."""
    tone = 1 + 0.5 * n.fractal(14 * x, 14 * y, 5, 14 * footprint)
    result: Floats = base * tone[:, None]
    return result


def bricks(n: Noise, s: Floats, z: Floats, pixel: Floats, base: Floats) -> Floats:
    """Albedo of a brick wall in running bond; s along the wall, z upwards."""
    row = np.floor(z / 0.085)
    shifted = s / 0.25 + 0.5 * (row % 2)
    u, v = shifted % 1.0, (z / 0.085) % 1.0
    mortar = np.maximum(
        smoothstep(0.06, 0.02, np.minimum(u, 1 - u)), smoothstep(0.16, 0.08, np.minimum(v, 1 - v))
    )
    fade = np.clip(1.4 - pixel * 16, 0, 1)
    tone = 1 + fade * (0.6 * n.cell(shifted, row) - 0.3) + 0.3 * n.fractal(s, z, 3)
    return mix(
        base * tone[:, None],
        colour(0.68, 0.65, 0.61),
        (fade * mortar * 0.8 + (1 - fade) * 0.22).astype(np.float32),
    )


def leaves(n: Noise, s: Floats, z: Floats, pixel: Floats, base: Floats) -> tuple[Floats, Floats]:
    """Albedo of a clipped hedge, and what to add to its normal, (n, 3), for its bumps."""
    clump = n.fractal(3 * s, 3 * z, 4, 3 * pixel)
    leaf = n.value(28 * s, 28 * z) * n.value(47 * s + 5, 47 * z)
    albedo = base * (0.45 + 1.5 * leaf + 1.3 * clump)[:, None].clip(0.1, 2.5)
    slope = n.fractal(3 * s, 3 * z + 0.15, 4, 3 * pixel) - clump
    tilt = np.zeros((len(s), 3), np.float32)
    tilt[:, 2] = -4.5 * slope
    tilt[:, 0] = 3 * (n.fractal(3 * s + 0.15, 3 * z, 4, 3 * pixel) - clump)
    return albedo, tilt


def cover(n: Noise, kind: str, x: Floats, y: Floats, footprint: Floats) -> tuple[Floats, Floats]:
    """Albedo (n, 3) and the horizontal part of the normal (n, 2) of a ground covering."""
    tilt = np.zeros((len(x), 2), np.float32)
    if kind == "asphalt":
        grain = n.fractal(45 * x, 45 * y, 3, 45 * footprint)
        coarse = n.fractal(2.2 * x, 2.2 * y, 4, 2.2 * footprint)
        tone = 1 + 0.9 * grain + 0.45 * coarse
        warp = 0.5 * n.fractal(1.3 * x, 1.3 * y, 4)
        crack = np.abs(n.value(0.45 * x + warp, 0.45 * y + warp) - 0.5)
        split = smoothstep(0.006, 0.002, crack) * (n.value(0.3 * x, 0.3 * y + 9) > 0.55)
        albedo = colour(0.44, 0.44, 0.45) * (tone * (1 - 0.5 * split))[:, None]
        return albedo, tilt
    if kind == "gravel":
        pebble = n.value(38 * x, 38 * y)
        fine = n.fractal(80 * x, 80 * y, 2, 60 * footprint)
        fade = np.clip(1.5 - 26 * footprint, 0, 1)
        tone = 1 + fade * (1.1 * (pebble - 0.5) + 0.9 * fine) + 0.5 * n.fractal(x, y, 4)
        grey, warm = colour(0.60, 0.58, 0.55), colour(0.66, 0.60, 0.50)
        tilt[:, 0] = fade * (n.value(38 * x + 0.4, 38 * y) - pebble)
        return mix(grey, warm, n.value(25 * x + 3, 25 * y)) * tone[:, None], tilt
    if kind == "grass":
        fine = np.clip(1.5 - 90 * footprint, 0, 1) * (n.value(110 * x, 110 * y) - 0.5)
        blade = n.fractal(24 * x, 24 * y, 4, 24 * footprint) + 0.6 * n.fractal(5 * x, 5 * y, 3)
        blade = blade + 0.45 * fine
        clump = n.fractal(1.5 * x, 1.5 * y, 4, 1.5 * footprint)
        tone = 1 + 1.3 * blade + 0.9 * clump
        dry = np.clip(0.5 + 1.6 * n.fractal(0.6 * x + 40, 0.6 * y, 3), 0, 1)
        return mix(colour(0.33, 0.43, 0.20), colour(0.50, 0.51, 0.28), dry) * tone[:, None], tilt
    wide, deep = {"setts": (0.17, 0.12), "slabs": (0.5, 0.5)}.get(kind, (0.21, 0.105))
    row = np.floor(y / deep)
    shifted = x / wide + (0.5 * (row % 2) if kind != "slabs" else 0.0)
    u, v = shifted % 1.0, (y / deep) % 1.0
    edge = np.minimum(np.minimum(u, 1 - u) * wide, np.minimum(v, 1 - v) * deep)
    gap = 0.012 if kind == "setts" else 0.005
    fade = np.clip(1.6 - footprint / 0.03, 0, 1)
    joint = smoothstep(gap, 0.3 * gap, edge) * fade
    tint = (0.5 if kind == "setts" else 0.28) * (n.cell(shifted, row) - 0.5) * fade
    tone = 1 + tint + 0.5 * n.fractal(30 * x, 30 * y, 4, 30 * footprint)
    tone = tone + 0.3 * n.fractal(1.2 * x, 1.2 * y, 3)
    base = {"setts": colour(0.50, 0.49, 0.48), "slabs": colour(0.64, 0.63, 0.61)}.get(
        kind, colour(0.56, 0.43, 0.38)
    )
    return base * (tone * (1 - 0.55 * joint) - 0.06 * (1 - fade))[:, None], tilt
