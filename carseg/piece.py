"""Clean-up of soft masks: a car in one piece, with the soft edge that cut-outs want."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from carseg.clean import clean

FAINT = 0.1  # probability from which a pixel belongs to a piece's soft edge


def one_piece(found: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Reduce probabilities (H, W) to the largest piece of car, with its soft edge and no holes.

    Elsewhere they are 0, in what were holes 1. Cut at the threshold, that is the mask that `clean`
    gives.

    Args:
        found: probability of being car, 0…1; it is left as it is.
        threshold: probability from which a pixel is car.
    """
    car = found >= threshold
    kept = clean(car)
    shades, number = ndimage.label(found >= min(FAINT, threshold))
    own = np.zeros(number + 1, np.bool_)
    own[shades[kept & car]] = True
    mine = own[shades] & (kept | ~car)
    if (own[shades] & car & ~kept).any():  # edges meet: what is nearer to another piece is its own
        nearest = ndimage.distance_transform_edt(~car, return_distances=False, return_indices=True)
        mine &= kept[tuple(nearest)]
    found = np.where(mine, found, np.float32(0))
    found[kept & ~car] = 1
    return found
