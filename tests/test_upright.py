"""Looks at cars that lie on their side: which photos are turned, and what becomes of both looks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from carseg.photos import squared_photo
from carseg.predict import combine_two
from carseg.tensors import photo_tensor
from carseg.upright import CLOCKWISE, find_upright, on_its_side
from carseg.views import CAR, turn

SIZE = 32
CROSS = (0.45, 0.55, 0.45, 0.55)
LONG, HIGH = (0.4, 0.6, 0.1, 0.9), (0.1, 0.9, 0.4, 0.6)
Place = tuple[float, float, float, float]  # top, bottom, left, right, against the photo's sides


def seen(place: Place, outside: float = 0.1, inside: float = 0.9) -> Tensor:
    """What a look gives that finds a car at a place: (1, 1, S, S)."""
    top, bottom, left, right = (round(SIZE * at) for at in place)
    found = torch.full((1, 1, SIZE, SIZE), outside)
    found[..., top:bottom, left:right] = inside
    return found


class Looks:
    """Give what is prepared, a look after the other, and keep the squares that were looked at."""

    def __init__(self, *prepared: Tensor) -> None:
        self.prepared = list(prepared)
        self.squares: list[Tensor] = []

    def __call__(self, squares: Tensor) -> Tensor:
        self.squares.append(squares)
        return self.prepared.pop(0)


def photo(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("place", [LONG, CROSS])
def test_a_car_that_stands_is_looked_at_once_and_so_is_one_as_long_as_high(place: Place) -> None:
    looks = Looks(seen(place))
    found = find_upright(looks, photo(SIZE, SIZE), SIZE)
    assert (found.shape, found.dtype) == ((SIZE, SIZE), np.float32)
    assert np.array_equal(found, seen(place)[0, 0])
    assert torch.equal(looks.squares[0][0], photo_tensor(squared_photo(photo(SIZE, SIZE), SIZE)))


def test_where_nothing_is_found_nothing_is_looked_at_again() -> None:
    found = find_upright(Looks(seen(HIGH, 0.1, 0.4)), photo(SIZE, SIZE), SIZE)
    assert found.max() < CAR


def test_a_car_on_its_side_is_looked_at_in_the_photo_turned_clockwise() -> None:
    first, second = seen(HIGH, 0.3, 0.7), seen(LONG, 0.05, 0.95)
    looks = Looks(first, second)
    found = find_upright(looks, photo(SIZE, SIZE), SIZE)
    square, turned = (looked[0] for looked in looks.squares)
    pixels = square.permute(1, 2, 0).numpy()
    assert np.array_equal(turned.permute(1, 2, 0).numpy(), np.rot90(pixels, -1)), "clockwise"
    assert torch.equal(turned, turn(square, CLOCKWISE))
    laid_back = torch.rot90(second, 1, (2, 3))
    expected = combine_two(torch.cat([first, laid_back]))[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # The second look is the surer one.
    np.testing.assert_allclose(found, laid_back[0, 0].numpy(), atol=1e-6)


def test_what_is_high_and_surer_as_it_was_held_stays_as_it_was() -> None:
    first = seen(HIGH, 0.05, 0.95)
    found = find_upright(Looks(first, seen(CROSS, 0.3, 0.7)), photo(SIZE, SIZE), SIZE)
    np.testing.assert_allclose(found, first[0, 0].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "place", "expected"),
    [
        ((400, 300), (0.2, 0.8, 0.2, 0.8), True),  # as high as wide in the square alone
        ((300, 400), (0.2, 0.8, 0.2, 0.8), False),
        ((300, 300), HIGH, True),
        ((300, 300), LONG, False),
        ((300, 300), (0.2, 0.8, 0.22, 0.78), False),  # taller than wide, but not clearly
        ((100, 1000), (0.1, 0.9, 0.45, 0.55), False),  # 80 high, 100 wide
    ],
)
def test_the_photos_own_shape_tells_how_a_car_lies(
    shape: tuple[int, int], place: Place, expected: bool
) -> None:
    assert on_its_side(seen(place)[0], shape) is expected
