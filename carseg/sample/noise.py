"""Lattice noise: a small table of random numbers, interpolated and summed over octaves.

The technique is value noise with fractal sums (Ebert et al., "Texturing and Modeling").
"""

import numpy as np

from carseg.sample.arrays import Floats

_SIZE = 256


class Noise:
    """Periodic value noise over the plane."""

    def __init__(self, rng: np.random.Generator) -> None:
        """Draw the table from `rng`; the same generator state gives the same noise."""
        self._table: Floats = rng.random((_SIZE, _SIZE), dtype=np.float32)

    def cell(self, x: Floats, y: Floats) -> Floats:
        """One constant random value in [0, 1) per unit cell of (x, y), both of shape (n,)."""
        column = np.floor(x).astype(np.int32) & (_SIZE - 1)
        row = np.floor(y).astype(np.int32) & (_SIZE - 1)
        values: Floats = self._table[row, column]
        return values

    def value(self, x: Floats, y: Floats) -> Floats:
        """Smooth noise in [0, 1] with one feature per unit of (x, y), both of shape (n,)."""
        left, low = np.floor(x), np.floor(y)
        u, v = (x - left).astype(np.float32), (y - low).astype(np.float32)
        u = u * u * (3 - 2 * u)
        v = v * v * (3 - 2 * v)
        x0 = left.astype(np.int32) & (_SIZE - 1)
        y0 = low.astype(np.int32) & (_SIZE - 1)
        x1, y1 = (x0 + 1) & (_SIZE - 1), (y0 + 1) & (_SIZE - 1)
        flat = self._table.ravel()
        y0 *= _SIZE
        y1 *= _SIZE
        lower = flat[y0 + x0] * (1 - u) + flat[y0 + x1] * u
        upper = flat[y1 + x0] * (1 - u) + flat[y1 + x1] * u
        values: Floats = lower * (1 - v) + upper * v
        return values

    def fractal(
        self, x: Floats, y: Floats, octaves: int, footprint: Floats | float = 0.0
    ) -> Floats:
        """Sum of `octaves` octaves, centred on 0 and within about [-0.5, 0.5].

        x, y: shape (n,). footprint: extent of one pixel in units of x; octaves finer than that
        fade out, which keeps distant surfaces from flickering into moiré.
        """
        total = np.zeros(x.shape, np.float32)
        weight, frequency = 0.5, 1.0
        for octave in range(octaves):
            fade = np.clip(1.5 - 2.0 * frequency * np.asarray(footprint, np.float32), 0, 1)
            if not fade.any():  # nor do the octaves after it
                break
            shift = 17.3 * octave
            layer = self.value(
                (x * frequency + shift).astype(np.float32),
                (y * frequency + 1.7 * shift).astype(np.float32),
            )
            total += (weight * fade * (layer - 0.5)).astype(np.float32)
            weight *= 0.55
            frequency *= 2.03
        return total
