"""Which photo belongs to which mask."""

from __future__ import annotations

import csv
import hashlib
import heapq
import os
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

from carseg.errors import CarsegError
from carseg.files import SYSTEMS

PHOTOS = (".jpg", ".jpeg")
MASKS = (".png",)
ANNOTATIONS = (".json", ".xml")
LONGEST = 190  # bytes of a name without its ending: file systems take 255, DVC's plots add 65
UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, broken encodings, ends of lines

T = TypeVar("T")


class Pair(NamedTuple):
    """A photo and its mask.

    Files are kept as text with slashes, which takes a fifth of what paths do: pairs are all that
    is in memory of each photo.
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

    def digest(self) -> bytes:
        """Return the SHA-256 of what is in the photo, then that of the mask, 64 bytes.

        Raises:
            OSError: one of them cannot be read.
        """
        return b"".join(
            hashlib.sha256(path.read_bytes()).digest() for path in (self.photo, self.mask)
        )


def read_manifest(path: Path) -> list[Pair]:
    """Read the pairs of a manifest, a CSV file with the columns photo and mask.

    Raises:
        CarsegError: the file or a column is missing, or there is no pair.
        OSError: the file may not be read, or the disk fails.
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
    except (
        FileNotFoundError,
        NotADirectoryError,
        ValueError,
        csv.Error,
    ) as error:  # or not UTF-8, CSV, ours
        raise CarsegError(
            f"{path}: expected the columns photo,mask and a row for each pair; run dvc repro"
        ) from error
    return pairs


def evenly(items: Sequence[T], most: int) -> Sequence[T]:
    """Pick at most `most` items, evenly spaced: neighbours often show one car or place."""
    count = min(len(items), most)
    return [items[i * len(items) // count] for i in range(count)]


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
    """Return the pairs of two folders, sorted by name, and a line for each fault.

    Faults are a photo without mask, a mask without photo, a name that two files share, one that is
    too long or no text, a file of another kind, a link to nothing, and folders without photos.
    """
    faults: list[str] = []
    photos, faulty_photos = _usable(images, PHOTOS, faults)
    shapes, faulty_masks = _usable(masks, MASKS, faults)
    pairs = []
    alone: dict[str, str] = {}  # photos without a mask
    masks_alone: dict[str, str] = {}
    # Merging two sorted lists takes half the memory of tables by name.
    for name, files in groupby(heapq.merge(photos, shapes, key=shared_name), key=shared_name):
        one, *other = files  # a photo comes before its mask
        if other:
            pairs.append(Pair(one, *other))
        elif one.lower().endswith(PHOTOS) and name not in faulty_masks:
            alone[name] = one
        elif one.lower().endswith(MASKS) and name not in faulty_photos:
            masks_alone[name] = one
    folded = {name.casefold(): name for name in alone}
    for name, mask in masks_alone.items():
        parts = (name, *_beginnings(name))
        exact = (part for part in parts if part in alone)
        in_other_case = (folded.get(part.casefold()) for part in parts)
        photo = next(filter(alone.__contains__, chain(exact, in_other_case)), None)
        if photo is not None:
            del alone[photo]
            faults.append(f"{mask}: has no photo; rename it to {masks / photo}.png, if it is that")
        else:
            faults.append(f"{mask}: has no photo; add {images / name}.jpg or remove the mask")
    for name, photo in alone.items():
        faults.append(f"{photo}: has no mask; add {masks / name}.png or remove the photo")
    if not faults and not pairs:
        faults.append(f"{images}: has no photos; put .jpg files there and their masks in {masks}")
    return pairs, faults


def files_in(folder: Path) -> Iterator[Path]:
    """Return what `entries_in` gives, in an order that is the same everywhere."""
    for name in sorted(entry.name for entry in entries_in(folder)):
        yield folder / name


def entries_in(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the user's own entries in a folder: no README, and no hidden or system files."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in ("README.md", *SYSTEMS):
                    yield entry


def _usable(
    folder: Path, endings: tuple[str, ...], faults: list[str]
) -> tuple[list[str], set[str]]:
    """Return usable files, sorted by name, and names of faulty ones; `faults` gets doubles, too."""
    found: list[str] = []
    faulty: set[str] = set()
    for path in files_in(folder):
        if fault := _fault(path, endings):
            faults.append(fault)
            faulty.add(shared_name(str(path)))
        else:
            found.append(path.as_posix())
    found.sort(key=shared_name)
    usable: list[str] = []
    for file in found:
        if usable and shared_name(file) == shared_name(usable[-1]):
            faults.append(f"{file}: shares its name with {usable[-1]}; remove or rename one")
        else:
            usable.append(file)
    return usable, faulty


def shared_name(file: str) -> str:
    """Return what a photo and its mask have in common."""
    # The same accented letter is one character on one system and two on another.
    return unicodedata.normalize("NFC", os.path.splitext(os.path.basename(file))[0])


def _beginnings(name: str) -> Iterator[str]:
    """Yield possible photo names in a mask's name, `car` in `car_mask`, the longest first."""
    for at in range(len(name) - 1, 0, -1):
        if name[at] in "_-. ":
            yield name[:at]


def _fault(path: Path, endings: tuple[str, ...]) -> str | None:
    if any(unicodedata.category(letter) in UNWRITABLE for letter in path.name):
        return f"{str(path)!a}: its name holds a character that is no text; rename it"
    if (length := len(os.fsencode(path.stem))) > LONGEST:
        return f"{path}: its name has {length} bytes, {LONGEST} are the most; rename it"
    if path.is_symlink() and not path.exists():
        return f"{path}: is a link to a file that is gone; put the file here"
    if path.is_dir():
        return f"{path}: is a folder; move what belongs to it into {path.parent}, or move it away"
    if path.suffix.lower() in ANNOTATIONS and path.is_file():
        return f"{path}: is no photo or mask; move it away (carseg masks import takes annotations)"
    if path.suffix.lower() not in endings or not path.is_file():
        return f"{path}: is not a {endings[0]} file; convert it (docs/photos.md) or move it away"
    return None
