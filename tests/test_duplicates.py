"""Photos that show the same are found, others are not."""

import io
import tracemalloc

import numpy as np
import pytest
from conftest import photo
from PIL import Image, ImageEnhance

from carseg.duplicates import near_duplicates, thumbnail

PHOTO = photo(240, 180, grain=20)


def saved(photo: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


SAME = {
    "itself": PHOTO,
    "saved anew": saved(PHOTO, 60),
    "scaled": PHOTO.resize((120, 90), Image.Resampling.LANCZOS),
    "turned": PHOTO.transpose(Image.Transpose.ROTATE_90),
    "turned the other way, and scaled": PHOTO.transpose(Image.Transpose.ROTATE_270).resize(
        (90, 120)
    ),
    "upside down, and saved anew": saved(PHOTO.transpose(Image.Transpose.ROTATE_180), 60),
}
OTHER = {
    "mirrored": PHOTO.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored along a diagonal": PHOTO.transpose(Image.Transpose.TRANSPOSE),
    "brighter": ImageEnhance.Brightness(PHOTO).enhance(1.05),
    "shifted": PHOTO.crop((10, 0, 240, 180)),
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_picture_is_found(change: str) -> None:
    assert list(near_duplicates([thumbnail(PHOTO), thumbnail(SAME[change])])) == [(0, 1)]


@pytest.mark.parametrize("change", OTHER)
def test_another_picture_is_not_taken_for_it(change: str) -> None:
    assert list(near_duplicates([thumbnail(PHOTO), thumbnail(OTHER[change])])) == []


@pytest.mark.parametrize(("level", "found"), [(103, [(0, 1)]), (104, []), (105, [])])
def test_a_difference_of_four_levels_is_the_limit(level: int, found: list[tuple[int, int]]) -> None:
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (100, level)]
    assert list(near_duplicates(pictures)) == found


def test_every_double_is_told_once_in_order() -> None:
    pictures = [PHOTO, OTHER["mirrored"], SAME["scaled"], SAME["saved anew"], OTHER["mirrored"]]
    found = list(near_duplicates([thumbnail(picture) for picture in pictures]))
    assert found == [(0, 2), (0, 3), (1, 4)]


def test_doubles_that_are_most_alike_in_twos_are_told_of_as_one_picture() -> None:
    lighter = ImageEnhance.Brightness(PHOTO).enhance(1.02)
    pictures = [saved(photo, quality) for photo in (PHOTO, lighter) for quality in (95, 70)]
    found = list(near_duplicates([thumbnail(picture) for picture in pictures]))
    assert found == [(0, 1), (0, 2), (0, 3)]


def test_thousands_of_doubles_take_no_memory_for_each_two_of_them() -> None:
    pictures = [thumbnail(PHOTO), thumbnail(OTHER["mirrored"])]
    tracemalloc.start()
    found = list(near_duplicates(pictures * 5000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == [(i % 2, i) for i in range(2, 10_000)]
    assert peak < 50e6


@pytest.mark.parametrize("count", [0, 1])
def test_few_pictures_have_no_double(count: int) -> None:
    assert list(near_duplicates([thumbnail(PHOTO)] * count)) == []
