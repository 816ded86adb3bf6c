"""Probability to mask, cleaned up where photos are of one car in one piece."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def to_mask(probability: NDArray[np.float32], threshold: float, cleanup: bool) -> NDArray[np.bool_]:
    """Return which pixels are car, (H, W).

    Args:
        probability: of being car, (H, W), 0…1.
        threshold: probability from which a pixel is.
        cleanup: whether to `clean` the mask.
    """
    mask = probability >= threshold
    return clean(mask) if cleanup else mask


def clean(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the largest connected piece of a mask (H, W) and fill the holes in it.

    Pixels are connected along their sides, not across corners; of pieces of one size the first,
    row by row, is kept. A mask without a car stays empty.
    """
    pieces, number = ndimage.label(mask)
    if number > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        mask = pieces == 1 + int(sizes.argmax())
    return np.asarray(ndimage.binary_fill_holes(mask), np.bool_)
