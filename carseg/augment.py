"""Augmentation of photo and mask together; the only module that knows albumentations."""

from __future__ import annotations

import albumentations as A
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZES = (0.3, 0.7)  # of a car put behind another, against its own size


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
                    scale=(0.85, 1.2),
                    translate_percent=(-0.06, 0.06),
                    rotate=(-8, 8),
                    interpolation=1,
                    # Not mirrored: that would show a second car, and call it one.
                    border_mode=0,
                    fill=(124, 116, 104),
                    p=0.7,
                ),
                A.ColorJitter(
                    brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2),
                    hue=(-0.03, 0.03), p=0.7,
                ),
                A.OneOf(
                    [
                        A.GaussianBlur(blur_limit=(3, 5)),
                        A.GaussNoise(std_range=(0.01, 0.05)),
                        A.ImageCompression(quality_range=(40, 90)),
                    ],
                    p=0.2,
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


def put_behind(
    photo: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    other_photo: NDArray[np.uint8],
    other_mask: NDArray[np.uint8],
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """Give the photo with the car of another one, smaller, somewhere behind its own.

    The mask stays as it is: cars in the background are background. Few photos show one, and a
    net that has seen none takes it for a part of the car before it. After copy-paste
    augmentation (Ghiasi et al. 2021, arXiv:2012.07177).

    Args:
        photo: (S, S, 3), uint8.
        mask: (S, S), uint8, share of car in each pixel, 0…255.
        other_photo: as `photo`, where the other car comes from.
        other_mask: as `mask`.
        random: what scale, side and place are drawn from.
    """
    size = photo.shape[0]
    scale = random.uniform(*SIZES)
    flip = random.random() < 0.5
    x, y = random.integers(size, size=2)  # of the middle of the other car
    rows, columns = np.nonzero(other_mask)
    if not len(rows):
        return photo
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    width = max(1, round(scale * (box[2] - box[0])))
    height = max(1, round(scale * (box[3] - box[1])))
    car, shape = (
        Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR, box=box)
        for array in (other_photo, other_mask)
    )
    if flip:
        car, shape = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (car, shape))
    behind = Image.fromarray(photo)
    behind.paste(car, (int(x) - width // 2, int(y) - height // 2), shape)
    share = mask[..., None] / 255  # (S, S, 1)
    mixed: NDArray[np.float64] = share * photo + (1 - share) * np.asarray(behind)
    return mixed.round().astype(np.uint8)
