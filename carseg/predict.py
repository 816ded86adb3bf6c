"""Photo to probability to mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carseg.device import Device
from carseg.photos import squared_photo
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net
from carseg.views import D4, View, extent, standing, turn, turn_back

Look = Callable[[Tensor], Tensor]  # photos (N, 3, S, S) to probabilities (N, 1, S, S), float32

SHARPNESS = 100.0  # one view surer by 0.01 than another weighs e times as much

CAR = 0.5  # probability from which a pixel is taken for car to see how the car lies


def probability(net: U2Net, photos: Tensor, device: Device) -> Tensor:
    """Give each pixel's probability of being car, (N, 1, H, W), float32, 0…1, on the CPU.

    Args:
        net: on the device, in eval mode.
        photos: (N, 3, H, W), float32, normalised.
        device: what to compute on.
    """
    with torch.inference_mode(), device.autocast():
        logits = net(device.place(photos))[:, :1]
    return torch.sigmoid(logits.float()).cpu()


def find(look: Look, photo: Image.Image, views: Sequence[View], size: int) -> NDArray[np.float32]:
    """Give each pixel's probability of being car, (H, W), float32, 0…1, averaged over views.

    Args:
        look: at squares.
        photo: RGB, W×H.
        views: how the photo is laid.
        size: side of those squares, in pixels.
    """
    square = photo_tensor(squared_photo(photo, size))  # (3, S, S)
    shape = (photo.height, photo.width)
    return at_size(combine(from_sides(look, square, views), views, shape), shape)


def from_sides(look: Look, square: Tensor, views: Sequence[View] = D4) -> Tensor:
    """Look at a square photo (3, S, S) from `views`: (V, 1, S, S), laid as the photo is."""
    return torch.cat([turn_back(look(turn(square[None], view)), view) for view in views])


def combine(seen: Tensor, views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """Average what views show of one photo, but not those in which its car lies on its side.

    Args:
        seen: (V, 1, S, S), probabilities, 0…1, laid as the photo is.
        views: the V views.
        size: the photo's own (height, width), as squares have lost its shape.

    Returns:
        (1, S, S), probabilities, 0…1.
    """
    height, width = extent(np.asarray(_average(seen)[0] >= CAR))  # of a photo that is a square
    upright = standing((height * size[0], width * size[1]), views)
    return _average(seen[[view in upright for view in views]])


def _average(seen: Tensor) -> Tensor:
    """Average probabilities (V, 1, S, S) to (1, S, S), each as the net is sure of it.

    One of a car lying on its roof, say, is blurred all over, and should not blur the others.
    """
    certainty = (2 * seen - 1).abs().mean(dim=(1, 2, 3))  # (V,), 0…1
    weight = torch.softmax(SHARPNESS * certainty, dim=0)
    return (weight.view(-1, 1, 1, 1) * seen).sum(dim=0)


def at_size(probabilities: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Scale probabilities (1, h, w) to a photo's own (height, width): (H, W), float32, 0…1."""
    scaled = F.interpolate(probabilities[None], size=size, mode="bilinear", align_corners=False)
    return np.asarray(scaled[0, 0])


def mask_at(probabilities: Tensor, size: tuple[int, int], threshold: float) -> NDArray[np.bool_]:
    """Scale probabilities (1, h, w) to a photo's own (height, width) and only then threshold."""
    return at_size(probabilities, size) >= threshold
