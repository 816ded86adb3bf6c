"""A second look, at the box around the car alone: the net sees more of it in as many pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from carseg.photos import squared_photo
from carseg.predict import Look, at_size, combine, from_sides
from carseg.tensors import photo_tensor
from carseg.views import CAR, View, extent, standing_views

MARGIN = 0.1  # around a car, against its width and height

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels, as of PIL


def look_closer(
    look: Look, photo: Image.Image, found: NDArray[np.float32], views: Sequence[View], size: int
) -> NDArray[np.float32]:
    """Find the car again, in the box around what was found; outside of it that stays as it is.

    A square of the whole photo is half street. The box is stretched to a square of the same size,
    so edges are met more finely, and what stands about is seen no more. What was found also tells
    how the car lies, so that it is not looked at on its side. It is averaged with what the box
    shows, by certainty: of a car that the photo cuts off, the whole photo tells more.

    Args:
        look: at squares.
        photo: RGB, W×H.
        found: (H, W), what the looks at the whole photo gave, 0…1.
        views: how the box may be laid.
        size: side of those squares, in pixels.
    """
    car = found >= CAR
    left, top, right, bottom = box = box_around(car)
    square = photo_tensor(squared_photo(photo.crop(box), size))  # (3, S, S)
    again = from_sides(look, square, standing_views(extent(car), views))  # (V, 1, S, S)
    inside = torch.from_numpy(found[None, top:bottom, left:right])
    before = torch.from_numpy(at_size(inside, (size, size)))[None, None]
    closer = found.copy()
    closer[top:bottom, left:right] = at_size(
        combine(torch.cat([before, again])), (bottom - top, right - left)
    )
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
