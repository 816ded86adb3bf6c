"""Photos that show the same, whatever their names, sizes and files' bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import KDTree

SIDE = 8  # pixels of a thumbnail
NEAR = 4.0  # root mean square difference, of 255, of thumbnails that show the same; others have 20


def thumbnail(photo: Image.Image) -> NDArray[np.uint8]:
    """Shrink an RGB photo to (8, 8, 3), uint8; saved anew or scaled, it stays nearly the same."""
    return np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BOX))


def same_pictures(thumbnails: Sequence[NDArray[np.uint8]]) -> list[tuple[int, int]]:
    """Give the positions of photos that show the same, each pair once, the earlier one first.

    Args:
        thumbnails: of the photos, (8, 8, 3), uint8 each.
    """
    if not thumbnails:
        return []
    flat = np.stack(thumbnails).reshape(len(thumbnails), -1).astype(np.float32)  # (N, 192)
    return sorted(KDTree(flat).query_pairs(NEAR * flat.shape[1] ** 0.5))
