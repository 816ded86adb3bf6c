"""A prediction drawn over its photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Of Okabe and Ito's palette, which colour-blind readers tell apart.
TRUE_POSITIVE = (0, 158, 115)  # green: car, found
FALSE_POSITIVE = (230, 159, 0)  # orange: background, taken for car
FALSE_NEGATIVE = (204, 121, 167)  # pink: car, missed
TINT = 0.45  # strength of what was found; errors, mostly thin lines, are drawn nearly solid
LONG_SIDE = 640  # pixels


def overlay(
    photo: Image.Image, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> Image.Image:
    """Tint the photo by agreement, scaled down to `LONG_SIDE`.

    Args:
        photo: RGB, W×H.
        predicted: (H, W), True where car was found.
        truth: (H, W), True where there is car.

    Returns:
        RGB, its longer side `LONG_SIDE` pixels at most.
    """
    pixels = np.asarray(photo).astype(np.float32)  # (H, W, 3)
    for region, colour, strength in (
        (predicted & truth, TRUE_POSITIVE, TINT),
        (predicted & ~truth, FALSE_POSITIVE, 0.9),
        (~predicted & truth, FALSE_NEGATIVE, 0.9),
    ):
        pixels[region] = (1 - strength) * pixels[region] + strength * np.array(colour, np.float32)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BOX)
    return picture
