"""Augmentation of photo and mask together; the only module that knows albumentations."""

from __future__ import annotations

import albumentations as A
import numpy as np
from numpy.typing import NDArray


class Augment:
    """Random turns, flips, crops, colours and blur, as phones and their owners make them.

    The same `seed` gives the same result on every call, in any process.
    """

    def __init__(self) -> None:
        self._compose = A.Compose(
            [
                # Half of all cars lie on their side, as the camera was turned: the group D4 of
                # right-angle turns and flips is the first thing to be invariant to.
                A.D4(p=1.0),
                A.Affine(
                    scale=(0.75, 1.3),
                    translate_percent=(-0.1, 0.1),
                    rotate=(-12, 12),
                    shear=(-6, 6),
                    interpolation=1,
                    border_mode=4,
                    p=0.8,
                ),
                A.ColorJitter(
                    brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.6, 1.4),
                    hue=(-0.05, 0.05), p=0.8,
                ),
                A.ToGray(p=0.05),
                A.OneOf(
                    [
                        A.GaussianBlur(blur_limit=(3, 5)),
                        A.GaussNoise(std_range=(0.01, 0.05)),
                        A.ImageCompression(quality_range=(40, 90)),
                    ],
                    p=0.3,
                ),
            ]
        )  # fmt: skip

    def __call__(
        self, photo: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment a photo (H, W, 3), uint8, and its soft mask (H, W), uint8, 0…255; H = W."""
        self._compose.set_random_seed(seed)
        result = self._compose(image=photo, mask=mask)
        return result["image"], result["mask"]
