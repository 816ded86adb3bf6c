"""Which photo belongs to which mask."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from carseg.errors import CarsegError
from carseg.files import read_csv

PHOTOS = (".jpg", ".jpeg")
MASKS = (".png",)


class Pair(NamedTuple):
    """A photo and its mask."""

    photo: Path
    mask: Path

    @property
    def name(self) -> str:
        """What the two files are called, without folder and ending."""
        return self.photo.stem


def read_manifest(path: Path) -> list[Pair]:
    """Read the pairs of a manifest, a CSV file with the columns photo and mask.

    Raises:
        CarsegError: the file or a column is missing, or there is no pair.
    """
    rows = read_csv(path) if path.is_file() else []
    if not rows or not {"photo", "mask"} <= rows[0].keys():
        raise CarsegError(f"{path}: expected the columns photo,mask and a row a pair; rerun split")
    return [Pair(Path(row["photo"]), Path(row["mask"])) for row in rows]


def find_pairs(images: Path, masks: Path) -> list[Pair]:
    """Match photos and masks by name, sorted by it.

    Raises:
        CarsegError: a line for each photo without mask, mask without photo, name that two
            files share, and file of another kind.
    """
    faults: list[str] = []
    photo_of = _by_name(images, PHOTOS, faults)
    mask_of = _by_name(masks, MASKS, faults)
    for name in sorted(photo_of.keys() - mask_of.keys()):
        faults.append(f"{photo_of[name]}: has no mask; add {masks / name}.png or remove the photo")
    for name in sorted(mask_of.keys() - photo_of.keys()):
        faults.append(f"{mask_of[name]}: has no photo; add {images / name}.jpg or remove the mask")
    if not faults and not photo_of:
        faults.append(f"{images}: has no photos; put .jpg files there and their masks in {masks}")
    if faults:
        raise CarsegError("\n".join(faults))
    return [Pair(photo_of[name], mask_of[name]) for name in sorted(photo_of)]


def files_in(folder: Path) -> list[Path]:
    """Give the folder's own files, but for its README and hidden ones, in one order everywhere."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name != "README.md"
    )


def _by_name(folder: Path, endings: tuple[str, ...], faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_in(folder):
        if path.suffix.lower() not in endings or not path.is_file():
            faults.append(f"{path}: is not a {endings[0]} file; convert it or move it away")
        elif path.stem in found:
            faults.append(f"{path}: shares its name with {found[path.stem]}; rename one")
        else:
            found[path.stem] = path
    return found
