"""Trained weights as a function: image in, probability out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps

from carseg import weights
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.photos import eight_bits, read_photo, squared_photo
from carseg.predict import combine, probability, probability_of_views
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net

Picture = Image.Image | str | Path | NDArray[np.uint8]


class Model:
    """A trained net that takes any image.

    Attributes:
        net: in eval mode, on the device.
        size: side of the square that the net sees, in pixels; the one that it was trained with.
    """

    def __init__(self, net: U2Net, size: int = 320, device: Device | None = None) -> None:
        self._device = device or Device()
        self.net = self._device.place_net(net).eval()
        self.size = size

    def predict(self, picture: Picture, d4: bool = False) -> NDArray[np.float32]:
        """Give each pixel's probability of being car, (H, W), float32, 0…1, at the picture's size.

        Args:
            picture: a file, a PIL image of any mode, or an array (H, W, 3), uint8, RGB. Files and
                PIL images are turned upright where their EXIF tag says how the camera was held.
            d4: look at all eight right-angle turns and flips, and average: better, eight times
                the work.

        Raises:
            CarsegError: the file cannot be read as an image.
            ValueError: an array of another shape or type.
        """
        photo = as_photo(picture)
        square = photo_tensor(squared_photo(photo, self.size))  # (3, S, S)
        if d4:
            found = combine(probability_of_views(self.net, square, self._device))  # (1, S, S)
        else:
            found = probability(self.net, square[None], self._device)[0]
        size = (photo.height, photo.width)
        scaled = F.interpolate(found[None], size=size, mode="bilinear", align_corners=False)
        return np.asarray(scaled[0, 0])


def load(path: str | Path, size: int = 320, precision: str = "auto", device: str = "auto") -> Model:
    """Load weights that a training saved, of either network.

    Args:
        path: a .pth file.
        size: the `image_size` of its training.
        precision: auto, float32 or bfloat16.
        device: auto, cpu or cuda.

    Raises:
        CarsegError: the file is missing, broken, or holds no U²-Net, or there is no such device.
    """
    path = Path(path)
    state = weights.read_checkpoint(path)
    net = U2Net(weights.variant_of(state, path))
    net.load_state_dict(state)
    return Model(net, size, Device(precision, device))


def as_photo(picture: Picture) -> Image.Image:
    """Bring a picture of any kind to an upright RGB image.

    Raises:
        CarsegError: the file cannot be read as an image.
        ValueError: an array of another shape or type.
    """
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"expected an array (H, W, 3) of uint8, got {picture.shape} of {picture.dtype}"
            )
        return Image.fromarray(picture)
    if not isinstance(picture, Image.Image):
        return read_photo(Path(picture))
    try:
        upright = ImageOps.exif_transpose(picture)
    except OSError as error:  # PIL reads pixels only now
        raise CarsegError(f"the picture cannot be read ({error}); save it anew") from error
    return eight_bits(upright).convert("RGB")
