"""Boundary IoU and Hausdorff distance against slow, independent computations."""

import math

import numpy as np
import pytest
from conftest import ellipse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from carseg.edges import BAND, boundary_iou, hd95

Mask = NDArray[np.bool_]

SHAPES = some.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(some.arrays(bool, shape), some.arrays(bool, shape)))
EMPTY, FULL = np.zeros((30, 40), bool), np.ones((30, 40), bool)


def band(mask: Mask) -> Mask:
    """What as many erosions as the band is wide take away; the rim of the photo is an edge."""
    width = max(1, round(BAND * math.hypot(*mask.shape)))
    square = np.ones((3, 3), bool)
    return mask & ~ndimage.binary_erosion(mask, square, iterations=width, border_value=0)


def outline(mask: Mask) -> NDArray[np.int64]:
    """Car pixels with a neighbour, above, below or beside, that is none."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask, border_value=0))


def by_erosion(predicted: Mask, truth: Mask) -> float:
    found, wanted = band(predicted), band(truth)
    union = (found | wanted).sum()
    return (found & wanted).sum() / union if union else 1.0


def by_all_distances(predicted: Mask, truth: Mask) -> float:
    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() == truth.any() else math.hypot(*truth.shape)
    distances = cdist(outline(predicted), outline(truth))
    return max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))


@given(PAIRS)
def test_small_masks_agree_with_the_slow_way(masks: tuple[Mask, Mask]) -> None:
    assert boundary_iou(*masks) == pytest.approx(by_erosion(*masks))
    assert hd95(*masks) == by_all_distances(*masks)


def test_large_masks_agree_with_the_slow_way() -> None:
    masks = ellipse(150, 200, seed=1), ellipse(150, 200, seed=2)
    assert 0.02 < by_erosion(*masks) < 0.9
    assert boundary_iou(*masks) == pytest.approx(by_erosion(*masks))
    assert by_all_distances(*masks) > 3
    assert hd95(*masks) == by_all_distances(*masks)


def test_the_band_is_as_wide_as_the_nearest_whole_number_of_pixels() -> None:
    assert BAND == 0.02, "as in the paper"
    square = np.zeros((40, 64), bool)  # 2 % of its diagonal are 1.5 pixels
    square[10:30, 20:40] = True
    hollow = square.copy()
    hollow[12:28, 22:38] = False  # all but two pixels along the edge
    assert boundary_iou(hollow, square) == 1
    hollow[11:29, 21:39] = False
    assert boundary_iou(hollow, square) == (20**2 - 18**2) / (20**2 - 16**2)


@given(PAIRS)
def test_neither_score_depends_on_which_is_the_truth(masks: tuple[Mask, Mask]) -> None:
    predicted, truth = masks
    assert boundary_iou(predicted, truth) == boundary_iou(truth, predicted)
    assert hd95(predicted, truth) == hd95(truth, predicted)
    assert (boundary_iou(truth, truth), hd95(truth, truth)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("predicted", "truth", "iou", "distance"),
    [(EMPTY, EMPTY, 1, 0), (FULL, FULL, 1, 0), (EMPTY, FULL, 0, 50), (FULL, EMPTY, 0, 50)],
)
def test_empty_and_full_masks(predicted: Mask, truth: Mask, iou: float, distance: float) -> None:
    assert (boundary_iou(predicted, truth), hd95(predicted, truth)) == (iou, distance)


def test_a_shift_is_the_distance_and_hurts_the_boundary_more_than_the_inside() -> None:
    truth = np.zeros((400, 400), bool)
    truth[100:300, 100:300] = True
    shifted = np.roll(truth, 7, axis=1)
    assert hd95(shifted, truth) == pytest.approx(7)
    iou = (shifted & truth).sum() / (shifted | truth).sum()
    assert boundary_iou(shifted, truth) < iou - 0.1


def test_the_farthest_twentieth_of_the_outline_is_forgiven() -> None:
    truth = np.zeros((200, 400), bool)
    truth[50:150, 50:350] = True
    spur = truth.copy()
    spur[100, 350:360] = True  # an aerial, ten pixels long
    assert hd95(spur, truth) == 0
    spur[60:140, 350:360] = True
    assert hd95(spur, truth) == pytest.approx(10)


def test_long_distances_are_exact() -> None:
    """As those of OpenCV are not, in float32: their last digit depends on where a mask lies."""
    truth = np.zeros((8, 6000), bool)
    truth[1:7, 1:7] = True
    predicted = truth.copy()
    predicted[2:5, 5000:5007] = True
    assert hd95(predicted, truth) == by_all_distances(predicted, truth) > 4990
