"""Which photo belongs to which mask."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from carseg.errors import CarsegError

PHOTOS = (".jpg", ".jpeg")
MASKS = (".png",)
SYSTEMS = ("Thumbs.db", "desktop.ini")
UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, broken encodings, ends of lines


class Pair(NamedTuple):
    """A photo and its mask.

    Files are kept as text, which takes a fifth of what paths do: pairs are all that is in memory
    of each photo.
    """

    photo_file: str
    mask_file: str

    @property
    def photo(self) -> Path:
        """The photo's path."""
        return Path(self.photo_file)

    @property
    def mask(self) -> Path:
        """The mask's path."""
        return Path(self.mask_file)

    @property
    def name(self) -> str:
        """What the two files are called, without folder and ending."""
        return self.photo.stem


def read_manifest(path: Path) -> list[Pair]:
    """Read the pairs of a manifest, a CSV file with the columns photo and mask.

    Raises:
        CarsegError: the file or a column is missing, or there is no pair.
    """
    pairs = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if not (row.get("photo") and row.get("mask")):
                    raise ValueError
                pairs.append(Pair(row["photo"], row["mask"]))
        if not pairs:
            raise ValueError
    except (OSError, ValueError, csv.Error) as error:  # no file, not UTF-8, not CSV, not ours
        raise CarsegError(
            f"{path}: expected the columns photo,mask and a row a pair; rerun split"
        ) from error
    return pairs


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """Match photos and masks by name, sorted by it.

    Raises:
        CarsegError: a line for each fault of `match`.
    """
    pairs, faults = match(images, masks)
    if faults:
        raise CarsegError("\n".join(faults))
    return pairs


def match(images: Path, masks: Path) -> tuple[list[Pair], list[str]]:
    """Give the pairs of two folders, sorted by name, and a line for each fault.

    Faults are a photo without mask, a mask without photo, a name that two files share, a file of
    another kind, and folders without photos.
    """
    faults: list[str] = []
    photo_of, faulty_photos = _by_name(images, PHOTOS, faults)
    mask_of, faulty_masks = _by_name(masks, MASKS, faults)
    for name in sorted(photo_of.keys() - mask_of.keys() - faulty_masks):
        faults.append(f"{photo_of[name]}: has no mask; add {masks / name}.png or remove the photo")
    for name in sorted(mask_of.keys() - photo_of.keys() - faulty_photos):
        faults.append(f"{mask_of[name]}: has no photo; add {images / name}.jpg or remove the mask")
    if not faults and not photo_of:
        faults.append(f"{images}: has no photos; put .jpg files there and their masks in {masks}")
    both = sorted(photo_of.keys() & mask_of.keys())
    return [Pair(photo_of[name], mask_of[name]) for name in both], faults


def files_in(folder: Path) -> Iterator[Path]:
    """Give what lies in a folder but is nobody's: no README and nothing that systems put there.

    The order is the same everywhere.
    """
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        if not name.startswith(".") and name not in ("README.md", *SYSTEMS):
            yield folder / name


def _by_name(
    folder: Path, endings: tuple[str, ...], faults: list[str]
) -> tuple[dict[str, str], set[str]]:
    """Give the files that can be used, and the names of the others, which `faults` tells of."""
    found: dict[str, str] = {}
    faulty: set[str] = set()
    for path in files_in(folder):
        # The same accented letter is one character on one system and two on another.
        name = unicodedata.normalize("NFC", path.stem)
        if fault := _fault(path, endings):
            faults.append(fault)
            faulty.add(name)
        elif name in found:
            faults.append(f"{path}: shares its name with {found[name]}; rename one")
        else:
            found[name] = str(path)
    return found, faulty


def _fault(path: Path, endings: tuple[str, ...]) -> str | None:
    if any(unicodedata.category(letter) in UNWRITABLE for letter in path.name):
        return f"{str(path)!a}: its name holds a character that is no text; rename it"
    if path.is_symlink() and not path.exists():
        return f"{path}: is a link to a file that is gone; put the file here"
    if path.suffix.lower() not in endings or not path.is_file():
        return f"{path}: is not a {endings[0]} file; convert it or move it away"
    return None
