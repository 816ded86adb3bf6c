"""A second look, at the box around the car alone: the net sees more of it in as many pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carseg.views import CAR, View, extent, standing

MARGIN = 0.1  # around a car, against its width and height

# Photo, W×H, and views of it to each pixel's probability of being car, (H, W).
Find = Callable[[Image.Image, Sequence[View]], NDArray[np.float32]]
Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels, as of PIL


def look_closer(
    find: Find, photo: Image.Image, found: NDArray[np.float32], views: Sequence[View]
) -> NDArray[np.float32]:
    """Find the car again, in the box around what was found; nothing outside of it is car.

    A square of the whole photo is half street. The box is stretched to a square of the same size,
    so edges are met more finely, and what stands about is seen no more. What was found also tells
    how the car lies, so that it is not looked at on its side.

    Args:
        find: what looks at photos.
        photo: RGB, W×H.
        found: (H, W), what a look at the whole photo gave, 0…1.
        views: how the box may be laid.
    """
    car = found >= CAR
    left, top, right, bottom = box = box_around(car)
    closer = np.zeros_like(found)
    closer[top:bottom, left:right] = find(photo.crop(box), standing(extent(car), views))
    return closer


def box_around(car: NDArray[np.bool_]) -> Box:
    """Give the box around a car (H, W) with a margin, inside the photo; the whole without a car."""
    height, width = car.shape
    rows, columns = (np.flatnonzero(car.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, width, height
    (top, bottom), (left, right) = ((int(at[0]), int(at[-1]) + 1) for at in (rows, columns))
    down, across = round(MARGIN * (bottom - top)), round(MARGIN * (right - left))
    return (
        max(0, left - across),
        max(0, top - down),
        min(width, right + across),
        min(height, bottom + down),
    )
