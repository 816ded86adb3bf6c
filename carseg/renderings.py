"""Rendered pairs that train along with the user's, so that the net meets more cars than those."""

from __future__ import annotations

from pathlib import Path

from carseg.files import new_directory, write_csv
from carseg.sample import render_sample

SEED = 7  # not the sample's, or validation photos of a run on the sample would train
LONG_SIDE = 640  # pixels


def provide(count: int, folder: Path) -> None:
    """Render `count` pairs into `folder`, with the manifest `pairs.csv`, columns photo and mask.

    The same count gives the same pairs. What the folder held is replaced.

    Raises:
        CarsegError: the system killed a process that renders.
    """
    with new_directory(folder) as fresh:
        for name in ("Image", "Mask"):
            (fresh / name).mkdir()
        if count:
            render_sample(
                fresh / "Image", fresh / "Mask", count=count, seed=SEED, long_side=LONG_SIDE
            )
        stems = sorted(path.stem for path in (fresh / "Image").iterdir())
        rows = ((f"{folder}/Image/{stem}.jpg", f"{folder}/Mask/{stem}.png") for stem in stems)
        write_csv(fresh / "pairs.csv", ["photo", "mask"], rows)
