"""The second look: where it is, and what becomes of it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from carseg.closer import CAR, MARGIN, Box, box_around, look_closer


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


def test_the_second_look_is_at_the_box_and_nothing_else_is_car() -> None:
    found = np.full((50, 80), 0.4, np.float32)
    found[car((20, 10, 60, 30))] = CAR
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8)
    seen: list[Image.Image] = []

    def find(photo: Image.Image) -> NDArray[np.float32]:
        seen.append(photo)
        return np.full((photo.height, photo.width), 0.7, np.float32)

    closer = look_closer(find, Image.fromarray(pixels), found)
    assert [np.asarray(photo).tolist() for photo in seen] == [pixels[8:32, 16:64].tolist()]
    expected = np.zeros((50, 80), np.float32)
    expected[8:32, 16:64] = 0.7
    assert (closer.dtype, closer.tolist()) == (np.float32, expected.tolist())
    assert found.max() == CAR, "the first look stays as it is"
