"""Rendered pairs that train along with the user's, so that the net meets more cars than those."""

from __future__ import annotations

from pathlib import Path

from carseg.errors import CarsegError
from carseg.files import new_directory, write_csv
from carseg.sample import render_sample

# None of the first twenty shows a body from within 25 degrees of where the sample (seed 42) does:
# a run on the sample would train on what it validates.
SEED = 8
LONG_SIDE = 640  # pixels


def provide(count: int, folder: Path) -> None:
    """Render `count` pairs into `folder`, with the manifest `pairs.csv`, columns photo and mask.

    The same count gives the same pairs. What the folder held is replaced.

    Raises:
        CarsegError: a process that renders was killed, or had too little memory.
        OSError: the disk is full or fails.
    """
    with new_directory(folder) as fresh:
        for name in ("Image", "Mask"):
            (fresh / name).mkdir()
        if count:
            print(f"renderings: rendering {count} pairs to train along", flush=True)
            _render(count, fresh)
        stems = sorted(path.stem for path in (fresh / "Image").iterdir())
        rows = ((f"{folder}/Image/{stem}.jpg", f"{folder}/Mask/{stem}.png") for stem in stems)
        write_csv(fresh / "pairs.csv", ["photo", "mask"], rows)


def _render(count: int, folder: Path) -> None:
    images, masks = folder / "Image", folder / "Mask"
    try:
        render_sample(images, masks, count=count, seed=SEED, long_side=LONG_SIDE)
    except CarsegError as error:
        raise CarsegError(
            "renderings: a process that rendered them failed, for want of memory most likely; free "
            "some, or set renderings to 0 in params.yaml"
        ) from error
