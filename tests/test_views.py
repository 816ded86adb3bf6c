"""How photos can be laid, and in which of these ways a car stands."""

import numpy as np
import pytest
import torch
from conftest import noise

from carseg.views import CLEARLY, D4, View, extent, standing_views, turn, turn_back


@pytest.mark.parametrize("view", D4)
def test_a_view_can_be_undone(view: View) -> None:
    x = noise(2, 3, 8, 8)
    assert torch.equal(turn_back(turn(x, view), view), x)
    assert torch.equal(turn(turn_back(x, view), view), x)
    # Only places change: photos and channels stay apart.
    assert torch.equal(turn(x, view)[1, 2], turn(x[1, 2], view))


def test_the_views_are_the_eight_symmetries_of_the_square() -> None:
    x = torch.arange(9).view(3, 3)
    found = {tuple(turn(x, view).flatten().tolist()) for view in D4}
    symmetries = set()
    for y in (x, x.T):
        for rows in (y, y.flip(0)):
            symmetries |= {tuple(z.flatten().tolist()) for z in (rows, rows.flip(1))}
    assert len(D4) == len(symmetries) == 8
    assert found == symmetries


EVEN, ODD = [D4[i] for i in (0, 2, 4, 6)], [D4[i] for i in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("car", "expected"),
    [
        ((10, 30), EVEN),
        ((30, 10), ODD),
        ((10, 12.6), EVEN),
        ((12.6, 10), ODD),
        ((10, 12.5), list(D4)),
        ((12.5, 10), list(D4)),
        ((0, 0), list(D4)),  # no car
    ],
)
def test_a_car_stands_where_it_is_clearly_wider_than_high(
    car: tuple[float, float], expected: list[View]
) -> None:
    assert CLEARLY == 1.25
    assert list(standing_views(car, D4)) == expected


def test_views_are_kept_in_which_the_car_always_lies() -> None:
    assert list(standing_views((30, 10), EVEN)) == EVEN
    assert list(standing_views((10, 30), D4[:2])) == [D4[0]]


@pytest.mark.parametrize("view", D4)
def test_turning_the_photo_turns_the_views(view: View) -> None:
    car = torch.zeros(20, 20, dtype=torch.bool)
    car[3:8, 2:17] = True
    laid = np.asarray(turn(car, view))
    assert list(standing_views(extent(laid), D4)) == (EVEN if view[0] % 2 == 0 else ODD)


def test_specks_far_from_the_car_do_not_turn_it() -> None:
    car = np.zeros((1200, 900), bool)
    car[800:1000, 100:700] = True
    car[150:153, 300:303] = True  # from the first row to the last more than it is wide
    assert list(standing_views(extent(car), D4)) == EVEN


def test_the_extent_is_the_deviation_of_rows_and_columns() -> None:
    car = np.random.default_rng(0).random((9, 7)) < 0.3
    assert extent(car) == pytest.approx(tuple(np.argwhere(car).std(axis=0)))
    assert extent(np.zeros((9, 7), bool)) == (0, 0)
    car[:] = False
    car[4, 3] = True
    assert extent(car) == (0, 0)
