"""Augmentation of photo and mask together; the only module that knows albumentations."""

from __future__ import annotations

from random import Random

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIZES = (0.3, 0.8)  # of a car put behind another, against its own size
PARTS = (0.25, 0.7)  # side of the part of a photo that becomes a background, against the photo's
TRIES = 20  # parts looked at, to find one without car
CAR = 0.1  # share of car in such a part, at most
BLOCKS = (0.15, 0.6)  # sides of a camouflaged block, against the photo's
ALTERED = 0.7  # share of looks that are turned, shifted, coloured, … at all


class Augment:
    """Random turns, flips, crops, colours and blur, as phones and their owners make them.

    The same `seed` gives the same result on every call, in any process.
    """

    def __init__(self) -> None:
        self._compose = A.Compose(
            [
                # Many cars lie on their side, as the camera was turned: the group D4 of right-angle
                # turns and flips is the first thing to be invariant to. Half of the looks are not
                # turned, since photos to come will be held as those at hand were.
                A.D4(p=0.5 / ALTERED),
                A.Affine(
                    scale=(0.85, 1.2),
                    translate_percent=(-0.06, 0.06),
                    rotate=(-8, 8),
                    interpolation=cv2.INTER_LINEAR,
                    # Soft edges are shares of car: taken from the nearest pixel instead, they
                    # would lie beside the photo's.
                    mask_interpolation=cv2.INTER_LINEAR,
                    # Not mirrored: that would show a second car, and call it one.
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=(124, 116, 104),
                    p=0.7 / ALTERED,
                ),
                A.ColorJitter(
                    brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2),
                    hue=(-0.03, 0.03), p=0.7 / ALTERED,
                ),
                # Light that ends across a car is no edge of the car.
                A.RandomShadow(shadow_roi=(0, 0, 1, 1), p=0.3 / ALTERED),
                A.OneOf(
                    [
                        A.GaussianBlur(blur_limit=(3, 5)),
                        A.GaussNoise(std_range=(0.01, 0.05)),
                        A.ImageCompression(quality_range=(40, 90)),
                    ],
                    p=0.2 / ALTERED,
                ),
            ],
            # The others stay as photos are met.
            p=ALTERED,
        )  # fmt: skip
        self._paint = A.Compose(
            [
                A.ColorJitter(
                    brightness=(0.6, 1.4), contrast=(0.8, 1.2), saturation=(0.3, 1.7),
                    hue=(-0.5, 0.5), p=1.0,
                ),
            ]
        )  # fmt: skip

    def __call__(
        self, photo: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augment a photo (H, W, 3), uint8, and its soft mask (H, W), uint8, 0…255; H = W."""
        # One stream for all: by `set_random_seed` each would draw the same first number, and what
        # is rare would only ever come with all that is not.
        self._compose.set_random_state(np.random.default_rng(seed), Random(seed))  # noqa: S311
        result = self._compose(image=photo, mask=mask)
        return result["image"], result["mask"]

    def recolour(
        self, photo: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> NDArray[np.uint8]:
        """Give the photo with its car in another colour; shapes as of a call."""
        self._paint.set_random_seed(seed)
        return composite(self._paint(image=photo)["image"], mask, photo)


def put_behind(
    photo: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    other_photo: NDArray[np.uint8],
    other_mask: NDArray[np.uint8],
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """Give the photo with the car of another one, smaller, sticking out from behind its own.

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
    scale = random.uniform(*SIZES)
    flip = random.random() < 0.5
    places, box = np.argwhere(outline(mask)), Image.fromarray(other_mask).getbbox()
    if not len(places) or box is None:
        return photo
    y, x = places[random.integers(len(places))]  # of the middle of the other car
    left, top, right, bottom = box
    width = max(1, round(scale * (right - left)))
    height = max(1, round(scale * (bottom - top)))
    pasted, shape = (
        Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR, box=box)
        for array in (other_photo, other_mask)
    )
    if flip:
        pasted, shape = (
            part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (pasted, shape)
        )
    behind = Image.fromarray(photo)
    behind.paste(pasted, (int(x) - width // 2, int(y) - height // 2), shape)
    return composite(photo, mask, np.asarray(behind))


def put_elsewhere(
    photo: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    other_photo: NDArray[np.uint8],
    other_mask: NDArray[np.uint8],
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """Give the photo's car before a part of another photo that shows next to nothing of its car.

    Fifteen backgrounds are few: what stands beside a car only once is easily taken for car. A
    photo without such a part changes nothing. Arguments as of `put_behind`.
    """
    size = photo.shape[0]
    boxes = []
    for _ in range(TRIES):
        side = int(size * random.uniform(*PARTS))
        top, left = random.integers(size - side + 1, size=2)
        boxes.append((int(left), int(top), int(left) + side, int(top) + side))
    shares = [other_mask[top:bottom, left:right].mean() / 255 for left, top, right, bottom in boxes]
    least = int(np.argmin(shares))  # of equals the first, wherever it lies
    if shares[least] > CAR:
        return photo
    scene = Image.fromarray(other_photo).resize(
        (size, size), Image.Resampling.BILINEAR, boxes[least]
    )
    return composite(photo, mask, np.asarray(scene))


def camouflage(
    photo: NDArray[np.uint8], mask: NDArray[np.uint8], random: np.random.Generator
) -> NDArray[np.uint8]:
    """Give the photo with what surrounds its car, or a block of that, nearer to the car's colour.

    A white car in snow, a blue one before a blue sign: what touches a car and has its colour is
    what a net takes for car, and only the texture tells. Arguments as of `put_behind`.
    """
    places = np.argwhere(outline(mask))
    if not len(places):
        return photo
    share = mask[..., None] / 255  # (S, S, 1)
    around = 1 - share
    if random.random() < 0.5:
        y, x = places[random.integers(len(places))]
        height, width = (photo.shape[0] * random.uniform(*BLOCKS, 2) / 2).astype(int) + 1
        block = np.s_[max(0, y - height) : y + height, max(0, x - width) : x + width]
        around = np.zeros_like(share)
        around[block] = 1 - share[block]
    shift = mean_colour(photo, share) - mean_colour(photo, around)
    shifted = photo + random.random() * around * shift
    return np.asarray(shifted.round().clip(0, 255), np.uint8)


def mean_colour(photo: NDArray[np.uint8], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average a photo (H, W, 3) to (3,), 0…255, each pixel weighed by `weight` (H, W, 1), 0…1."""
    total: NDArray[np.float64] = np.einsum("hwc,hw->c", photo, weight[..., 0])
    return np.asarray(total / max(weight.sum(), 1.0))


def composite(
    photo: NDArray[np.uint8], mask: NDArray[np.uint8], scene: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Put the photo's car (H, W, 3) onto a scene of the same size, by its mask (H, W), 0…255."""
    return np.asarray(Image.composite(*map(Image.fromarray, (photo, scene, mask))))


def outline(mask: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Give the pixels of a soft mask (H, W) along the edge of its car."""
    car = mask >= 128
    return np.asarray(car & ~ndimage.binary_erosion(car), np.bool_)
