"""The pairs in `Image/` and `Mask/`: checked, and copied into the snapshot that DVC versions."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from carseg.errors import CarsegError
from carseg.files import new_directory
from carseg.pairs import Pair, files_in, find_pairs
from carseg.photos import read_mask, read_photo
from carseg.sample import render_sample

FOLDERS = ("Image", "Mask")
SAMPLE = ".sample"  # rendered whole, not yet moved into the user's folders


def snapshot(root: Path, dataset: Path) -> list[Pair]:
    """Check the pairs in `root`'s folders Image and Mask and copy them into `dataset`.

    When both folders are empty, sample pairs are rendered into them first. Nothing in them is
    ever changed or deleted.

    Raises:
        CarsegError: a line for each fault found in any of the files.
    """
    empty = not any(files_in(root / folder) for folder in FOLDERS)
    if (root / SAMPLE).exists() or (empty and not _copy_from_home(root)):
        _render(root)
    pairs = find_pairs(root / "Image", root / "Mask")
    check(pairs)
    with new_directory(dataset) as fresh:
        for folder in FOLDERS:
            (fresh / folder).mkdir()
        for pair in pairs:
            # Real copies: a link would tie the user's file to DVC's cache.
            shutil.copyfile(pair.photo, fresh / "Image" / pair.photo.name)
            shutil.copyfile(pair.mask, fresh / "Mask" / pair.mask.name)
    return pairs


def check(pairs: list[Pair]) -> None:
    """Read every file whole and compare each photo with its mask.

    Raises:
        CarsegError: a line for each file that cannot be read, mask of another size than its
            photo, and mask without a car.
    """
    faults: list[str] = []
    for pair in pairs:
        try:
            photo, mask = read_photo(pair.photo), read_mask(pair.mask)
        except CarsegError as error:
            faults.append(str(error))
            continue
        if photo.size != mask.size:
            faults.append(
                f"{pair.mask}: is {mask.width}x{mask.height} but {pair.photo} is "
                f"{photo.width}x{photo.height}; give both one size"
            )
        elif mask.getbbox() is None:
            faults.append(f"{pair.mask}: is black all over; paint the car white")
    if faults:
        raise CarsegError("\n".join(faults))


def _copy_from_home(root: Path) -> bool:
    """Fetch the user's files when `root` is one of DVC's temporary copies of the project.

    Such a copy (`dvc exp run --temp`, `--queue`) holds what git knows, so not the photos.
    """
    home = Path(os.environ.get("DVC_ROOT", root))
    if home.resolve() == root.resolve():
        return False
    paths = [path for name in FOLDERS for path in files_in(home / name) if path.is_file()]
    for path in paths:
        (root / path.parent.name).mkdir(exist_ok=True)
        shutil.copyfile(path, root / path.parent.name / path.name)
    return bool(paths)


def _render(root: Path) -> None:
    """Render the sample whole, then move it in file by file; a cut-off move is taken up again."""
    done = root / SAMPLE
    if not done.exists():
        with new_directory(done) as fresh:
            for folder in FOLDERS:
                (fresh / folder).mkdir()
            print("Image/ and Mask/ are empty: rendering 20 sample pairs", flush=True)
            render_sample(fresh / "Image", fresh / "Mask")
    for folder in FOLDERS:
        (root / folder).mkdir(exist_ok=True)
        for path in files_in(done / folder):
            if not (root / folder / path.name).exists():
                os.replace(path, root / folder / path.name)
    shutil.rmtree(done)
