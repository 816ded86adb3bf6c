"""Arrays of photos and masks as the tensors that the network takes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carseg.photos import squared_photo

# Of ImageNet, in RGB: what the official weights were trained with.
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def photo_tensor(photo: NDArray[np.uint8]) -> Tensor:
    """Normalise a photo (H, W, 3), uint8, to (3, H, W), float32.

    It is divided by its own maximum, then standardised with ImageNet's mean and standard
    deviation, as the official weights (and rembg) expect.
    """
    brightest = max(int(photo.max()), 1)
    scaled = torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1) / brightest
    return (scaled - MEAN) / STD


def square_tensor(photo: Image.Image, size: int) -> Tensor:
    """Stretch a photo, RGB, W×H, to a square and normalise it: (3, size, size), float32."""
    return photo_tensor(squared_photo(photo, size))


def mask_tensor(mask: NDArray[np.uint8]) -> Tensor:
    """Turn a soft mask (H, W), uint8, into (1, H, W), float32, 0…1."""
    return torch.from_numpy(mask.astype(np.float32) / 255).unsqueeze(0)
