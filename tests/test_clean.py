"""Clean-up: one piece, no holes, nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as some
from numpy.typing import NDArray
from scipy import ndimage

from carseg.clean import clean, to_mask

MASKS = some.arrays(bool, some.array_shapes(min_dims=2, max_dims=2, max_side=10))


def drawn(*rows: str) -> NDArray[np.bool_]:
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_the_largest_piece_stays_and_its_holes_are_filled() -> None:
    mask = drawn("####..#", "#..#..#", "####...", "......#")
    assert (clean(mask) == drawn("####...", "####...", "####...", ".......")).all()


@pytest.mark.parametrize("threshold", [0.5, 0.25])
def test_the_threshold_itself_is_car(threshold: float) -> None:
    row = np.array([[threshold, threshold * 0.999, threshold * 1.001]], np.float32)
    assert to_mask(row, threshold, cleanup=False).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    "mask",
    [drawn("....", "...."), drawn("####", "####"), drawn("##..", ".#..", ".##.")],
)
def test_nothing_is_changed_where_nothing_is_amiss(mask: NDArray[np.bool_]) -> None:
    assert (clean(mask) == mask).all()


def test_of_pieces_of_one_size_the_first_stays() -> None:
    assert (clean(drawn("##.##")) == drawn("##...")).all()
    assert (clean(drawn("..#", "...", "#..")) == drawn("..#", "...", "...")).all(), "row by row"
    assert (clean(drawn("#.##.##")) == drawn("..##...")).all(), "the first of the largest"


def test_a_bay_open_to_the_outside_is_no_hole_and_a_corner_is_no_bridge() -> None:
    bay = drawn("####", "#...", "####")
    assert (clean(bay) == bay).all()
    assert (clean(drawn("##..", "##..", "..##")) == drawn("##..", "##..", "....")).all()


@given(MASKS)
def test_one_piece_is_left_and_cleaning_again_changes_nothing(mask: NDArray[np.bool_]) -> None:
    found = clean(mask)
    assert ndimage.label(found)[1] == min(1, int(mask.any()))
    assert ndimage.label(np.pad(~found, 1, constant_values=True))[1] == 1
    assert (clean(found) == found).all()
