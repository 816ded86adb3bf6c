"""The second look: where it is, and what becomes of it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from carseg.closer import MARGIN, Box, box_around, look_closer
from carseg.photos import squared_photo
from carseg.tensors import photo_tensor
from carseg.views import CAR, D4, TURNED, View, turn


def car(box: Box, shape: tuple[int, int] = (50, 80)) -> NDArray[np.bool_]:
    left, top, right, bottom = box
    found = np.zeros(shape, bool)
    # Only the corners: a box is told by the outermost pixels, not by how many there are.
    for row in (top, bottom - 1):
        for column in (left, right - 1):
            found[row, column] = True
    return found


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 10, 60, 30), (16, 8, 64, 32)),  # a tenth of 40 and of 20 on each side
        ((0, 10, 40, 50), (0, 6, 44, 50)),  # no further than the photo
        ((70, 49, 71, 50), (70, 49, 71, 50)),  # a tenth of a pixel is none
        ((20, 10, 36, 34), (18, 8, 38, 36)),  # 1.6 and 2.4 pixels are both two
        ((0, 0, 80, 50), (0, 0, 80, 50)),
    ],
)
def test_the_box_has_a_margin_and_stays_inside(box: Box, expected: Box) -> None:
    assert MARGIN == 0.1
    assert box_around(car(box)) == expected


def test_without_a_car_the_box_is_the_photo() -> None:
    assert box_around(np.zeros((50, 80), bool)) == (0, 0, 80, 50)


@pytest.mark.parametrize(
    ("box", "views", "expected"),
    [
        ((20, 10, 60, 30), TURNED, (0, 2)),
        ((20, 10, 30, 45), TURNED, (1, 3)),
        ((20, 10, 40, 30), TURNED, (0, 1, 2, 3)),  # as long as high: any of them may be right
        ((20, 10, 60, 30), D4, (0, 2, 4, 6)),
    ],
)
def test_the_second_look_is_at_the_box_and_the_rest_stays_as_it_is(
    box: Box, views: tuple[View, ...], expected: tuple[int, ...]
) -> None:
    found = np.full((50, 80), 0.4, np.float32)
    found[car(box)] = CAR
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    seen: list[Tensor] = []

    def look(photos: Tensor) -> Tensor:
        seen.extend(photos)
        return torch.full((1, 1, 64, 64), 1.0)  # so sure that the first look has no weight

    closer = look_closer(look, photo, found, views, 64)
    left, top, right, bottom = around = box_around(found >= CAR)
    square = photo_tensor(squared_photo(photo.crop(around), 64))
    for laid, i in zip(seen, expected, strict=True):
        assert torch.equal(laid, turn(square, D4[i]))
    filled = found.copy()
    filled[top:bottom, left:right] = 1
    np.testing.assert_allclose(closer, filled, atol=1e-6)
    assert closer.dtype == np.float32
    assert found.max() == CAR, "the first look stays as it is"


def test_what_is_unsure_or_finds_nothing_at_the_box_leaves_a_sure_first_look_as_it_is() -> None:
    found = np.zeros((50, 80), np.float32)
    found[10:30, 20:60] = 1
    photo = Image.new("RGB", (80, 50))
    for level in (0.6, 0.0):
        box = torch.full((1, 1, 64, 64), level)
        closer = look_closer(lambda _: box, photo, found, TURNED, 64)  # noqa: B023 - used at once
        assert np.array_equal(closer >= 0.5, found >= 0.5)
    # Where they are as sure of something else, two looks outvote one.
    elsewhere = torch.zeros(1, 1, 64, 64)
    elsewhere[..., :8] = elsewhere[..., -8:] = 1
    closer = look_closer(lambda _: elsewhere, photo, found, TURNED, 64)
    assert closer[20, 40] < 0.5
