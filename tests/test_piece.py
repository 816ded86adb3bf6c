"""Soft masks of one piece agree with hard ones, and keep their edge."""

import numpy as np
import pytest
from conftest import crumbs

from carseg.clean import clean
from carseg.piece import one_piece


def test_one_piece_keeps_its_soft_edge_and_loses_its_holes() -> None:
    before = crumbs()
    found = one_piece(before, 0.5)
    assert np.array_equal(before, crumbs())
    assert np.array_equal(found >= 0.5, clean(before >= 0.5))
    car = found[4:21, 3:24]
    assert (car[6:9, 6:9] == 1).all()
    car[6:9, 6:9] = before[10:13, 9:12]
    assert np.array_equal(car, before[4:21, 3:24])
    car[:] = 0
    assert not found.any()


def test_where_soft_edges_meet_the_smaller_piece_goes_all_the_same() -> None:
    found = np.zeros((9, 20), np.float32)
    found[2:7, 2:18] = 0.3
    found[3:6, 3:10], found[3:6, 13:17] = 0.9, 0.7
    kept = one_piece(found, 0.5)
    assert (kept[3:6, 3:10] == np.float32(0.9)).all()
    assert not kept[:, 12:].any(), "neither it, nor a ring of its edge"
    assert (kept[2:7, 2:11] >= np.float32(0.3)).all(), "the larger one keeps its own"


@pytest.mark.parametrize(("rim", "kept"), [(0.09, False), (0.11, True)])
def test_a_soft_edge_ends_where_a_car_is_unlikely(rim: float, kept: bool) -> None:
    found = np.zeros((9, 12), np.float32)
    found[2:7, 2:10] = rim
    found[3:6, 3:9] = 0.9
    assert bool(one_piece(found, 0.5)[2, 2] == np.float32(rim)) is kept


@pytest.mark.parametrize("value", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 1.0])
def test_one_piece_of_an_even_picture_is_all_or_nothing(value: float, threshold: float) -> None:
    even = np.full((4, 6), value, np.float32)
    wanted = even if even[0, 0] >= threshold else np.zeros_like(even)
    assert np.array_equal(one_piece(even, threshold), wanted)
