"""A look at a car as it stands: one found on its side is looked at once more, turned."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carseg.closer import CAR
from carseg.photos import squared_photo
from carseg.predict import Look, at_size, combine, from_sides
from carseg.tensors import photo_tensor
from carseg.views import AS_HELD, View, extent, standing

# Where cameras lay photos on their side and say so, their tag mostly wants this turn (EXIF, 6).
CLOCKWISE: View = (3, False)


def find_upright(look: Look, photo: Image.Image, size: int) -> NDArray[np.float32]:
    """Give each pixel's probability of being car, (H, W), float32, 0…1, the car seen as it stands.

    One look at a car that stands, two at one that lies on its side. Both are averaged, so that what
    is high and no lying car, as a lorry from the front, is seen best by the first and stays so.

    Args:
        look: at squares.
        photo: RGB, W×H.
        size: side of those squares, in pixels.
    """
    square = photo_tensor(squared_photo(photo, size))  # (3, S, S)
    shape = (photo.height, photo.width)
    seen = from_sides(look, square, AS_HELD)  # (1, 1, S, S)
    if on_its_side(seen[0], shape):
        seen = torch.cat([seen, from_sides(look, square, (CLOCKWISE,))])
    return at_size(combine(seen), shape)


def on_its_side(found: Tensor, shape: tuple[int, int]) -> bool:
    """Tell whether a car clearly lies on its side.

    Args:
        found: (1, S, S), probability of being car in a square photo, 0…1.
        shape: the photo's own height and width.
    """
    up, across = extent(np.asarray(found[0] >= CAR))
    height, width = shape
    return AS_HELD[0] not in standing((up * height, across * width), (*AS_HELD, CLOCKWISE))
