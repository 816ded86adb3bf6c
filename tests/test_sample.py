"""The rendered sample pairs: repeatable, well formed, and mask and photo fit each other."""

import inspect
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import contents
from numpy.typing import NDArray
from PIL import Image

from carseg.dataset import BYTES, FILES
from carseg.errors import CarsegError
from carseg.sample import is_rendered, render_sample

COUNT = 20
SIDE = 96


def render(root: Path, **options: int) -> Path:
    """Render into two fresh directories below `root`."""
    for name in ("Image", "Mask"):
        (root / name).mkdir(parents=True)
    render_sample(root / "Image", root / "Mask", **options)
    return root


def mask_of(path: Path) -> NDArray[np.uint8]:
    """The mask as an array of shape (height, width)."""
    with Image.open(path) as mask:
        return np.asarray(mask)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All pictures of the default seed, tiny."""
    return render(tmp_path_factory.mktemp("sample"), count=COUNT, long_side=SIDE)


def test_names_and_sizes_agree(sample: Path) -> None:
    """Each photo has a mask of the same stem and size; the longer side is as asked for."""
    photos = sorted((sample / "Image").iterdir())
    masks = sorted((sample / "Mask").iterdir())
    names = [f"{number:02d}" for number in range(1, COUNT + 1)]
    assert [path.name for path in photos] == [f"{name}.jpg" for name in names]
    assert [path.name for path in masks] == [f"{name}.png" for name in names]
    for photo_path, mask_path in zip(photos, masks, strict=True):
        with Image.open(photo_path) as photo, Image.open(mask_path) as mask:
            assert (photo.format, photo.mode) == ("JPEG", "RGB")
            assert (mask.format, mask.mode) == ("PNG", "L")
            assert photo.size == mask.size
            assert sorted(photo.size) == [SIDE * 3 // 4, SIDE]
        assert is_rendered(photo_path)


def test_masks_are_binary_with_one_sensible_car(sample: Path) -> None:
    """Masks hold 0 and 255 only, and the car takes a good part of every picture."""
    for path in sorted((sample / "Mask").iterdir()):
        mask = mask_of(path)
        assert set(np.unique(mask).tolist()) == {0, 255}, path.name
        assert 0.12 < np.mean(mask == 255) < 0.60, path.name


def test_portrait_and_landscape_occur(sample: Path) -> None:
    """Both formats are there, so that code that swaps the axes is found out."""
    shapes = {mask_of(path).shape for path in (sample / "Mask").iterdir()}
    assert shapes == {(SIDE, SIDE * 3 // 4), (SIDE * 3 // 4, SIDE)}


def test_pictures_depend_on_seed_and_number_only(sample: Path, tmp_path: Path) -> None:
    """A second run gives the same bytes, however many pictures; another seed does not."""
    first = contents(sample)
    again = contents(render(tmp_path / "again", count=4, long_side=SIDE))
    assert len(again) == 8
    assert all(first[name] == data for name, data in again.items())
    other = contents(render(tmp_path / "other", count=4, seed=7, long_side=SIDE))
    assert other.keys() == again.keys()
    assert all(other[name] != data for name, data in again.items())


def test_the_sample_is_as_large_as_the_one_that_is_known(tmp_path: Path) -> None:
    """By the bytes of all its files `carseg/dataset.py` tells it from a user's photos."""
    first = contents(render(tmp_path, count=2))
    assert sum(map(len, first.values())) == pytest.approx(279_650, rel=0.01), "BYTES has changed"
    assert FILES == 2 * COUNT
    # Roughly; tests/test_docs.py compares it with the last commit's.
    assert pytest.approx(279_650 * COUNT / 2, rel=0.1) == BYTES
    assert inspect.signature(render_sample).parameters["count"].default == COUNT


def killed(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def without_memory(*_: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [killed, without_memory])  # the former as Linux does it
def test_a_renderer_without_memory_is_an_error_of_a_line(
    fail: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carseg.sample._render", fail)
    with pytest.raises(CarsegError, match=r"^the sample: a process that rendered it failed, for"):
        render(tmp_path, count=1, long_side=SIDE)


def test_photo_has_edges_where_the_mask_has(sample: Path) -> None:
    """Brightness changes more along the mask's outline than along a displaced outline."""
    ratios = []
    for path in sorted((sample / "Mask").iterdir()):
        mask = mask_of(path) == 255
        with Image.open(sample / "Image" / f"{path.stem}.jpg") as photo:
            grey = np.asarray(photo.convert("L"), dtype=np.float64)
        gradient = np.hypot(*np.gradient(grey))
        outline = np.hypot(*np.gradient(mask.astype(float))) > 0
        on_edge = gradient[outline].mean()
        shifts = [(9, 5), (-9, 5), (9, -5), (-9, -5), (4, 11), (-4, -11)]
        elsewhere = np.mean([gradient[np.roll(outline, shift, (0, 1))].mean() for shift in shifts])
        ratios.append(on_edge / elsewhere)
    assert np.median(ratios) > 1.4
    assert min(ratios) > 0.9
