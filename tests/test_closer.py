"""The second look: where it is, and what becomes of it."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from carseg.closer import MARGIN, Box, box_around, look_closer
from carseg.views import CAR, D4, TURNED, View


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
def test_the_second_look_is_at_the_box_and_nothing_else_is_car(
    box: Box, views: tuple[View, ...], expected: tuple[int, ...]
) -> None:
    found = np.full((50, 80), 0.4, np.float32)
    found[car(box)] = CAR
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    seen: list[tuple[Image.Image, Sequence[View]]] = []

    def find(photo: Image.Image, views: Sequence[View]) -> NDArray[np.float32]:
        seen.append((photo, views))
        return np.full((photo.height, photo.width), 0.7, np.float32)

    closer = look_closer(find, Image.fromarray(pixels), found, views)
    left, top, right, bottom = box_around(found >= CAR)
    [(photo, looked)] = seen
    assert np.asarray(photo).tolist() == pixels[top:bottom, left:right].tolist()
    assert list(looked) == [D4[i] for i in expected]
    filled = np.zeros((50, 80), np.float32)
    filled[top:bottom, left:right] = 0.7
    assert (closer.dtype, closer.tolist()) == (np.float32, filled.tolist())
    assert found.max() == CAR, "the first look stays as it is"
