"""How well two masks agree along their edges, where wheels, mirrors and aerials are."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from carseg.metrics import count, iou

BAND = 0.02  # width of the band of boundary IoU, against the photo's diagonal; as the paper's


def boundary_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """IoU of the inner edge bands of two masks, 0…1; no car in either mask is full agreement.

    Large cars are nearly all inside, which IoU rewards; here only what lies within 2 % of the
    photo's diagonal from the edge counts. Cheng et al. 2021, arXiv:2103.16562, equation 2.

    Args:
        predicted: (H, W).
        truth: (H, W).
    """
    width = max(1, round(BAND * math.hypot(*truth.shape)))
    found, wanted = (
        mask & (_depth(mask, cv2.DIST_C) <= width) for mask in (predicted, truth)
    )  # fmt: skip
    return iou(count(found, wanted))


def hd95(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """95th-percentile Hausdorff distance, pixels: 95 % of an outline lies as near to the other one.

    The larger of the two directions (Maier-Hein et al. 2024, arXiv:2206.01653). 0 when no car is in
    either mask, the photo's diagonal when it is in one of them only.

    Args:
        predicted: (H, W).
        truth: (H, W).
    """
    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() == truth.any() else math.hypot(*truth.shape)
    found, wanted = (
        np.argwhere(mask & (_depth(mask, cv2.DIST_L1) <= 1)) for mask in (predicted, truth)
    )  # (n, 2), (m, 2): the outlines' pixels
    return max(
        float(np.percentile(KDTree(there).query(here)[0], 95))
        for here, there in ((found, wanted), (wanted, found))
    )


def _depth(mask: NDArray[np.bool_], metric: int) -> NDArray[np.float32]:
    """Return each car pixel's distance to the background, which a photo's rim is too."""
    padded = np.pad(mask, 1).view(np.uint8)
    return np.asarray(cv2.distanceTransform(padded, metric, cv2.DIST_MASK_3), np.float32)[
        1:-1, 1:-1
    ]
