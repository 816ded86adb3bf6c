"""Augmentation of photo and mask together; the only module that knows albumentations."""

from __future__ import annotations

from random import Random

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

CAR_SCALES = (0.3, 0.8)  # scale of a car pasted behind another
PARTS = (0.25, 0.7)  # side of a crop used as background, relative to the photo's
TRIES = 20  # crops drawn to find one without car
MOST_CAR = 0.1  # largest fraction of car in such a crop
BLOCKS = (0.15, 0.6)  # sides of a camouflaged block, relative to the photo's
MARGINS = (0.0, 0.3)  # of a crop to the car, on each side, relative to its width or height
LEAST_CAR = 0.1  # height and width of a car that is cropped to, relative to the photo's side
ALTERED = 0.7  # probability that a sample is turned, shifted, coloured, … at all


class Augment:
    """Random rotations, flips, shifts, scales, colours, shadows, blur, noise and JPEG artefacts.

    The same `seed` gives the same result on every call, in any process.
    """

    def __init__(self) -> None:
        self._compose = A.Compose(
            [
                # Many cars lie on their side, as the camera was turned: invariance to D4, the group
                # of right-angle turns and flips, comes first. Half of the samples skip it, since
                # new photos will be held as the training photos were.
                A.D4(p=0.5 / ALTERED),
                A.Affine(
                    scale=(0.85, 1.2),
                    translate_percent=(-0.06, 0.06),
                    rotate=(-8, 8),
                    interpolation=cv2.INTER_LINEAR,
                    # As the photo: with nearest-pixel sampling, the mask's soft edges would be
                    # shifted against the photo's.
                    mask_interpolation=cv2.INTER_LINEAR,
                    # Not mirrored: that would show a second car, and call it one.
                    border_mode=cv2.BORDER_CONSTANT,
                    fill=(124, 116, 104),  # the mean of ImageNet
                    p=0.7 / ALTERED,
                ),
                A.ColorJitter(
                    brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2),
                    hue=(-0.03, 0.03), p=0.7 / ALTERED,
                ),
                # The edge of a shadow on a car is no edge of the car.
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
            # The others stay as photos are at prediction.
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
        # One generator for all: with `set_random_seed` each would draw the same first number, and
        # a rare transform would only ever come with all more frequent ones.
        self._compose.set_random_state(np.random.default_rng(seed), Random(seed))  # noqa: S311
        result = self._compose(image=photo, mask=mask)
        return result["image"], result["mask"]

    def recolour(
        self, photo: NDArray[np.uint8], mask: NDArray[np.uint8], seed: int
    ) -> NDArray[np.uint8]:
        """Return the photo with its car in another colour; shapes as of a call."""
        self._paint.set_random_seed(seed)
        return composite(self._paint(image=photo)["image"], mask, photo)


def put_behind(
    photo: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    other_photo: NDArray[np.uint8],
    other_mask: NDArray[np.uint8],
    random: np.random.Generator,
) -> NDArray[np.uint8]:
    """Paste another photo's car, scaled down, behind the photo's own; return the photo.

    The mask stays as it is: cars in the background are background. Few photos show one, and a
    net that has seen none takes it for part of the car in front. After copy-paste augmentation
    (Ghiasi et al. 2021, arXiv:2012.07177).

    Args:
        photo: (S, S, 3), uint8.
        mask: (S, S), uint8, fraction of car in each pixel, 0…255.
        other_photo: as `photo`, the source of the other car.
        other_mask: as `mask`.
        random: draws scale, flip and position.
    """
    scale = random.uniform(*CAR_SCALES)
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
    """Paste the photo's car onto a nearly car-free crop of another photo, and return the result.

    Few photos have few backgrounds: what a net only ever sees beside one car, it takes for part of
    it. If no such crop is found, the photo is returned unchanged. Arguments as in `put_behind`.
    """
    size = photo.shape[0]
    boxes = []
    for _ in range(TRIES):
        side = int(size * random.uniform(*PARTS))
        top, left = random.integers(size - side + 1, size=2)
        boxes.append((int(left), int(top), int(left) + side, int(top) + side))
    shares = [other_mask[top:bottom, left:right].mean() / 255 for left, top, right, bottom in boxes]
    least = int(np.argmin(shares))  # of equals the first, wherever it lies
    if shares[least] > MOST_CAR:
        return photo
    scene = Image.fromarray(other_photo).resize(
        (size, size), Image.Resampling.BILINEAR, boxes[least]
    )
    return composite(photo, mask, np.asarray(scene))


def camouflage(
    photo: NDArray[np.uint8], mask: NDArray[np.uint8], random: np.random.Generator
) -> NDArray[np.uint8]:
    """Shift the colour of the car's surroundings, or of a block there, towards the car's.

    A white car in snow, a blue one in front of a blue sign: a net takes for car what touches it
    and has its colour; only texture distinguishes them. Arguments as in `put_behind`.
    """
    places = np.argwhere(outline(mask))
    if not len(places):
        return photo
    share = mask[..., None] / 255  # (S, S, 1)
    around = 1 - share
    if random.random() < 0.5:
        y, x = places[random.integers(len(places))]
        up, across = (photo.shape[0] * random.uniform(*BLOCKS, 2) / 2).astype(int) + 1
        block = np.s_[max(0, y - up) : y + up, max(0, x - across) : x + across]
        around = np.zeros_like(share)
        around[block] = 1 - share[block]
    shift = mean_colour(photo, share) - mean_colour(photo, around)
    shifted = photo + random.random() * around * shift
    return np.asarray(shifted.round().clip(0, 255), np.uint8)


def crop_to_car(
    photo: NDArray[np.uint8], mask: NDArray[np.uint8], random: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Crop photo and mask to the car's box, with a margin, and stretch them to the square again.

    A net trained only on photos that the car half fills gets worse on photos that it fills, and
    prediction looks at such boxes, too (`carseg.closer`). A car too small to show anything
    when stretched, or none, leaves both as they are. Arguments as in `put_behind`.
    """
    left, top, right, bottom = Image.fromarray(mask).getbbox() or (0, 0, 0, 0)
    size, width, height = len(mask), right - left, bottom - top
    if min(width, height) < LEAST_CAR * size:
        return photo, mask
    before, above, after, below = random.uniform(*MARGINS, 4)
    crop = (
        max(0.0, left - before * width),
        max(0.0, top - above * height),
        min(size, right + after * width),
        min(size, bottom + below * height),
    )
    stretched = (
        Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR, crop)
        for array in (photo, mask)
    )
    photo, mask = map(np.asarray, stretched)
    return photo, mask


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
    """Return the pixels of a soft mask (H, W) along the edge of its car."""
    car = mask >= 128
    return np.asarray(car & ~ndimage.binary_erosion(car), np.bool_)
