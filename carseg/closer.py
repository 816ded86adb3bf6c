"""A second prediction, of the box around the car alone, which then fills the net's input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from carseg.predict import Look, at_size, combine, predict_views
from carseg.tensors import square_tensor
from carseg.views import CAR, View, extent, standing_views

MARGIN = 0.1  # around a car, relative to its width and height

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels, as of PIL


def look_closer(
    look: Look, photo: Image.Image, found: NDArray[np.float32], views: Sequence[View], size: int
) -> NDArray[np.float32]:
    """Refine probabilities inside the box around the car; outside of it they stay as they are.

    About half of a photo is not car. The box is stretched to a square of the same size, which shows
    edges more finely and leaves the surroundings out. Views in which `found` clearly shows the car
    on its side are skipped. `found` is averaged with the result, by confidence: of a car that the
    photo cuts off, the whole photo shows more.

    Args:
        look: maps squares (N, 3, S, S) to probabilities (N, 1, S, S).
        photo: RGB, W×H.
        found: (H, W), probabilities predicted from the whole photo, 0…1.
        views: turns and flips of the box to choose from.
        size: S, in pixels.
    """
    car = found >= CAR
    left, top, right, bottom = box = box_around(car)
    square = square_tensor(photo.crop(box), size)  # (3, S, S)
    again = predict_views(look, square, standing_views(extent(car), views))  # (V, 1, S, S)
    inside = torch.from_numpy(found[None, top:bottom, left:right])
    before = torch.from_numpy(at_size(inside, (size, size)))[None, None]
    closer = found.copy()
    closer[top:bottom, left:right] = at_size(
        combine(torch.cat([before, again])), (bottom - top, right - left)
    )
    return closer


def box_around(car: NDArray[np.bool_]) -> Box:
    """Return the box around a car (H, W), with a margin, inside the photo; no car: the whole."""
    height, width = car.shape
    box = Image.fromarray(car).getbbox()
    if box is None:
        return 0, 0, width, height
    left, top, right, bottom = box
    down, across = round(MARGIN * (bottom - top)), round(MARGIN * (right - left))
    return (
        max(0, left - across),
        max(0, top - down),
        min(width, right + across),
        min(height, bottom + down),
    )
