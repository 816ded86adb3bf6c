"""Prediction of cars as they stand: one found on its side is predicted again, turned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carseg.predict import Look, at_size, combine_two, predict_views
from carseg.tensors import square_tensor
from carseg.views import AS_HELD, CAR, CLEARLY, View, extent

# Photos with an EXIF tag have been turned by it. Those that still lie have mostly lost theirs, and
# the most frequent one asks for this turn (orientation 6).
CLOCKWISE: View = (3, False)


def find_upright(look: Look, photo: Image.Image, size: int) -> NDArray[np.float32]:
    """Return each pixel's probability of being car, (H, W), float32, 0…1.

    One forward pass if the car stands; if it lies on its side, a second one, turned.

    Args:
        look: predicts squares.
        photo: RGB, W×H.
        size: side of the squares, in pixels.
    """
    square = square_tensor(photo, size)  # (3, S, S)
    shape = (photo.height, photo.width)
    return at_size(stand_up(look, square, look(square[None]), shape), shape)


def stand_up(look: Look, square: Tensor, first: Tensor, shape: tuple[int, int]) -> Tensor:
    """Predict a square photo again, turned, if the car lies on its side: (1, S, S), turned back.

    Both predictions are averaged by confidence, so that what is tall without lying, as a lorry from
    the front, mostly keeps the first one. If the car stands, that is returned.

    Args:
        look: predicts squares.
        square: (3, S, S), the photo.
        first: (1, 1, S, S), its first prediction.
        shape: the photo's own height and width.
    """
    _, *more = upright_views(first[0], shape)
    return combine_two(torch.cat([first, predict_views(look, square, more)])) if more else first[0]


def upright_views(found: Tensor, shape: tuple[int, int]) -> Sequence[View]:
    """Return the views to average: as held and, if the car lies on its side, turned by a quarter.

    Args:
        found: (1, S, S), probability of being car in a square photo, 0…1.
        shape: the photo's own height and width.
    """
    return (*AS_HELD, CLOCKWISE) if on_its_side(found, shape) else AS_HELD


def on_its_side(found: Tensor, shape: tuple[int, int]) -> bool:
    """Return whether a car clearly lies on its side.

    Args:
        found: (1, S, S), probability of being car in a square photo, 0…1.
        shape: the photo's own height and width.
    """
    up, across = extent(np.asarray(found[0] >= CAR))
    height, width = shape
    return up * height > CLEARLY * (across * width)
