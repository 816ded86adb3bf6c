"""The pairs in `Image/` and `Mask/`: checked, and copied into the snapshot that DVC versions."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carseg.ahead import on_cores
from carseg.duplicates import near_duplicates, thumbnail
from carseg.errors import CarsegError, warn, warn_of
from carseg.files import new_directory, write_bytes
from carseg.home import home_of
from carseg.lock import read_lock
from carseg.pairs import Pair, entries_in, files_in, match
from carseg.photos import read_levels, read_photo
from carseg.recorded import state
from carseg.sample import is_rendered, render_sample

FOLDERS = ("Image", "Mask")
DARK, LIGHT, GREY = 32, 224, 0.25  # soft edges are grey; a photo is so in more than a quarter
DIM = 0.2  # dark grey pixels per bright one; a car cut out of its photo has more
LABELS = 20  # the highest class of a mask that numbers them
SAMPLE = ".sample"  # rendered whole, not yet copied into the user's folders
FILES, BYTES = 40, 2_602_533  # of the sample; other processors render a few bytes more or less


def snapshot(root: Path, dataset: Path) -> list[Pair]:
    """Check the pairs in `root`'s folders Image and Mask and copy them into `dataset`.

    When both folders are empty, sample pairs are rendered into them first. Nothing in them is
    ever changed or deleted. Duplicate photos, masks that seem inverted and sample pairs among
    others cause warnings.

    Raises:
        CarsegError: a line for each fault in any file; or files were changed meanwhile; or there
            are none, and `dvc.lock` records others than the sample's.
    """
    _fill_when_empty(root)
    before = _state(root)
    pairs, faults = match(root / "Image", root / "Mask")
    inverted: list[Path] = []  # as it seems
    rendered: list[Path] = []

    def thumbnails() -> Iterator[NDArray[np.uint8]]:
        for pair, checked in zip(pairs, on_cores(_check, pairs), strict=True):
            faults.extend(checked.faults)
            if checked.inverted:
                inverted.append(pair.mask)
            if checked.rendered:
                rendered.append(pair.photo)
            if checked.thumbnail is not None:
                yield checked.thumbnail

    same = near_duplicates(thumbnails())  # which reads every pair
    if faults:
        raise CarsegError("\n".join(faults))
    same_lines = (
        f"{pairs[other].photo}: shows the same as {pairs[one].photo}; remove one, as scores "
        "flatter where one of them trains and the other validates"
        for one, other in same
    )
    warn_of(same_lines, "show the same")
    rim_lines = (
        f"{mask}: is white along most of its rim; if its car is black, invert it (docs/photos.md)"
        for mask in inverted
    )
    warn_of(rim_lines, "are white along most of their rim")
    if 0 < len(rendered) < len(pairs):
        among = (
            f"{rendered[0]}: is of the rendered sample, as are {len(rendered)} of {len(pairs)} "
            "photos; remove them and their masks, as they would validate, too"
        )
        warn(among)
    with new_directory(dataset) as fresh:
        for folder in FOLDERS:
            (fresh / folder).mkdir()
        for pair in pairs:
            # Real copies: a link would tie the user's file to DVC's cache.
            shutil.copyfile(pair.photo, fresh / "Image" / pair.photo.name)
            shutil.copyfile(pair.mask, fresh / "Mask" / pair.mask.name)
        if _state(root) != before:
            raise CarsegError("Image, Mask: were changed while they were read; run it again")
    return pairs


def _fill_when_empty(root: Path) -> None:
    empty = not any(any(files_in(root / folder)) for folder in FOLDERS)
    if (root / SAMPLE).exists() and not _is_of_sample(root):
        shutil.rmtree(root / SAMPLE)  # cut off, and the user has put in photos since
    if (root / SAMPLE).exists() or (empty and not _copy_from_home(root)):
        if _knows_others(root):
            raise CarsegError(
                "Image, Mask: are empty, but the last run was of other photos than the sample; get "
                "them back: dvc checkout dataset (in a fresh clone dvc pull dataset), then "
                "cp dataset/Image/* Image/ and cp dataset/Mask/* Mask/; or delete dvc.lock, "
                "and have the sample"
            )
        _render(root)


class Checked(NamedTuple):
    """What is found in a pair.

    Attributes:
        faults: a line each.
        inverted: its mask seems to be.
        rendered: it is of the sample.
        thumbnail: of the photo, (8, 8, 3), where the pair can be read.
    """

    faults: list[str]
    inverted: bool = False
    rendered: bool = False
    thumbnail: NDArray[np.uint8] | None = None


def _check(pair: Pair) -> Checked:
    """Read a pair whole."""
    faults: list[str] = []
    photo, mask = _read(read_photo, pair.photo, faults), _read(read_levels, pair.mask, faults)
    if photo is None or mask is None:
        return Checked(faults)
    inverted = False
    levels = np.asarray(mask)
    height, width = levels.shape
    if photo.size != (width, height):
        remedy = "give both one size"
        if photo.size == (height, width):
            remedy = (
                "one of them is turned, by its EXIF tag or by hand; turn the wrong one, or give "
                "the mask its photo's tag (docs/photos.md)"
            )
        faults.append(
            f"{pair.mask}: is {width}x{height} but {pair.photo} is "
            f"{photo.width}x{photo.height}; {remedy}"
        )
    elif (label := _label(levels)) is not None:
        border = " and 255" if levels.max() == 255 else ""
        faults.append(
            f"{pair.mask}: holds the levels 0 to {label}{border} alone, as label maps do; save a "
            "mask, 255 where the car is and 0 elsewhere (docs/photos.md)"
        )
    elif levels.max() < 128:
        way = ", or convert the mask (docs/photos.md)"
        if levels.max() == 0:  # as 255 of 65535 is, too
            way = ", 65535 where a mask has 16 bits, or leave out a photo without one"
        faults.append(
            f"{pair.mask}: has nothing white in it, its brightest level is {levels.max()} of 255; "
            f"paint the car white{way}"
        )
    elif levels.min() >= 128:
        faults.append(f"{pair.mask}: is white all over; paint what is no car black")
    elif (grey := np.mean((levels >= DARK) & (levels < LIGHT))) > GREY:
        faults.append(
            f"{pair.mask}: is neither black nor white in {grey:.0%} of its pixels; save a mask, "
            "white car on black"
        )
    elif (dim := np.mean((levels >= DARK) & (levels < 128)) / np.mean(levels >= 128)) > DIM:
        faults.append(
            f"{pair.mask}: has {dim:.0%} as many dark grey pixels, which count as background, as "
            "white ones; save a mask, all of the car white, not the car cut out, and with hard "
            "edges"
        )
    elif np.mean(_rim(levels) >= 128) > 0.5:
        inverted = True
    return Checked(faults, inverted, is_rendered(pair.photo), thumbnail(photo))


def _label(levels: NDArray[np.uint8]) -> int | None:
    """Return the highest label if a mask (H, W) numbers classes, perhaps with a border of 255."""
    labels = levels[(levels > 0) & (levels < 255)]
    if labels.size > np.count_nonzero(levels == 255) and labels.max() <= LABELS:
        return int(labels.max())
    return None


def _rim(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the outermost pixels of a mask (H, W), (N,)."""
    return np.concatenate((levels[0], levels[-1], levels[1:-1, 0], levels[1:-1, -1]))


def _read(read: Callable[[Path], Image.Image], path: Path, faults: list[str]) -> Image.Image | None:
    try:
        return read(path)
    except CarsegError as error:
        faults.append(str(error))
        return None


def _state(root: Path) -> int:
    """Return a number that changes with the user's files."""
    paths = (entry.path for folder in FOLDERS for entry in entries_in(root / folder))
    return state(filter(os.path.isfile, paths))  # entry.is_file() fails at a link to itself


def _copy_from_home(root: Path) -> bool:
    """Fetch the user's files when `root` is one of DVC's temporary copies of the project."""
    home = home_of(root)
    if home is None:
        return False
    paths = [path for name in FOLDERS for path in files_in(home / name) if path.is_file()]
    for path in paths:
        (root / path.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(path, root / path.parent.name / path.name)
    return bool(paths)


def _knows_others(root: Path) -> bool:
    """Return whether the last run that DVC knows of was of the user's own photos."""
    known = read_lock(root / "dvc.lock").of("dataset").output("dataset")
    if known is None or known.size is None:
        return False
    return known.nfiles != FILES or abs(known.size / BYTES - 1) > 0.01


def _render(root: Path) -> None:
    """Render the sample whole, then copy it in file by file; resume after an interruption.

    It is not moved, as the user's folders may be on another disk.
    """
    done = root / SAMPLE
    if not done.exists():
        with new_directory(done) as fresh:
            for folder in FOLDERS:
                (fresh / folder).mkdir()
            print(
                "Image/ and Mask/ are empty: rendering 20 sample pairs; remove them before you put "
                "in photos of your own",
                flush=True,
            )
            render_sample(fresh / "Image", fresh / "Mask")
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
        for path in files_in(done / folder):
            if not (root / folder / path.name).exists():
                write_bytes(root / folder / path.name, path.read_bytes())
    shutil.rmtree(done)


def _is_of_sample(root: Path) -> bool:
    """Return whether all in the user's folders is as it was rendered."""
    pairs = [
        (path, root / SAMPLE / folder / path.name)
        for folder in FOLDERS
        for path in files_in(root / folder)
    ]
    return all(
        path.is_file() and ours.is_file() and filecmp.cmp(path, ours, shallow=False)
        for path, ours in pairs
    )
