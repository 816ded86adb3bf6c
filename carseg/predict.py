"""Photo to probability, in one look (forward pass) or averaged over several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from carseg.device import Device
from carseg.tensors import square_tensor
from carseg.views import CAR, D4, View, turn, turn_back

Look = Callable[[Tensor], Tensor]  # photos (N, 3, S, S) to probabilities (N, 1, S, S), float32

# Factors of a softmax: a view weighs e times as much if it is surer of its car by 0.02, or of the
# whole picture by 0.01.
OF_CAR, OF_PICTURE = 50.0, 100.0
SPECK = 8  # a car so many times smaller than the largest one of all views makes its view less sure


def probability(net: nn.Module, photos: Tensor, device: Device) -> Tensor:
    """Return each pixel's probability of being car, (N, 1, H, W), float32, 0…1, on the CPU.

    Args:
        net: on the device, in eval mode.
        photos: (N, 3, H, W), float32, normalised.
        device: what to compute on.
    """
    with torch.inference_mode(), device.autocast():
        logits = net(device.place(photos))[:, :1]
    return torch.sigmoid(logits.float()).cpu()


def find(look: Look, photo: Image.Image, views: Sequence[View], size: int) -> NDArray[np.float32]:
    """Return each pixel's probability of being car, (H, W), float32, 0…1, averaged over views.

    Args:
        look: predicts squares.
        photo: RGB, W×H.
        views: turns and flips of the photo.
        size: side of the squares, in pixels.
    """
    square = square_tensor(photo, size)  # (3, S, S)
    return at_size(combine(predict_views(look, square, views)), (photo.height, photo.width))


def predict_views(look: Look, square: Tensor, views: Sequence[View] = D4) -> Tensor:
    """Predict a square photo (3, S, S) in each of `views`; turn results back: (V, 1, S, S)."""
    return torch.cat([turn_back(look(turn(square[None], view)), view) for view in views])


def combine(predictions: Tensor) -> Tensor:
    """Average predictions of one photo's views, (V, 1, S, S), 0…1, to (1, S, S).

    This is test-time augmentation. The surer a view is of what it takes for car, the higher its
    weight: the prediction of a car on its roof, say, is blurred, and should not blur the others. A
    view that finds no car, or only a speck compared with another view's, hardly counts.
    """
    car = predictions >= CAR
    area = car.sum(dim=(1, 2, 3))  # (V,), pixels
    surplus = ((2 * predictions - 1) * car).sum(dim=(1, 2, 3))
    confidence = surplus / area.clamp(min=max(1, int(area.max()) // SPECK))  # (V,), 0…1
    return _weighted(predictions, OF_CAR * confidence)


def combine_two(predictions: Tensor) -> Tensor:
    """Average as `combine` does, but one or two, by how sure each is of the whole picture.

    For so few, `combine` is no better (docs/recipe.md).
    """
    confidence = (2 * predictions - 1).abs().mean(dim=(1, 2, 3))  # (V,), 0…1
    return _weighted(predictions, OF_PICTURE * confidence)


def _weighted(predictions: Tensor, scores: Tensor) -> Tensor:
    weight = torch.softmax(scores, dim=0)
    return (weight.view(-1, 1, 1, 1) * predictions).sum(dim=0)


def at_size(probabilities: Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """Scale probabilities (1, h, w) to a photo's own (height, width): (H, W), float32, 0…1."""
    scaled = F.interpolate(probabilities[None], size=size, mode="bilinear", align_corners=False)
    return np.asarray(scaled[0, 0])
