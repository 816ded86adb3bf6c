"""Rendered sample data: photos of cars in streets, and their exact masks.

`layout` decides what a picture shows, `car` builds the body, `scene` the street, `light` the
daylight; `raster` finds what is visible, `paint` shades the car, `render` puts all together.
"""

import multiprocessing
import signal
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from carseg.ahead import cores
from carseg.errors import CarsegError
from carseg.sample.render import render_picture

__all__ = ["is_rendered", "render_sample"]

COMMENT = b"rendered by carseg"  # in every photo's file
MOST = 61  # processes, as Windows waits for no more


def render_sample(
    image_dir: Path, mask_dir: Path, *, count: int = 20, seed: int = 42, long_side: int = 960
) -> None:
    """Render `count` pairs, at least one, `01.jpg` / `01.png`, ... into two existing directories.

    Photos are RGB JPEGs in the format 4:3 or 3:4 whose longer side has `long_side` pixels; about
    half of them lie on their side. Masks are PNGs of mode "L" and the same size: 255 on the car,
    0 elsewhere. Picture k depends on `seed`, k and `long_side` only, and is the same in each run.

    Raises:
        CarsegError: the system killed a process that renders.
    """
    digits = max(2, len(str(count)))
    stems = [f"{index + 1:0{digits}d}" for index in range(count)]
    files = [(image_dir / f"{stem}.jpg", mask_dir / f"{stem}.png") for stem in stems]
    with ProcessPoolExecutor(
        min(count, cores(), MOST),
        multiprocessing.get_context("spawn"),  # the only one there is everywhere
        signal.signal,
        (signal.SIGINT, signal.SIG_IGN),  # who is told to stop is the process that waits for them
    ) as pool:
        done: Iterable[None] = pool.map(partial(_render, seed, long_side), range(count), files)
        try:
            for _ in done:
                pass
        except (BrokenProcessPool, MemoryError) as error:
            raise CarsegError(
                "the sample: a process that rendered it failed, for want of memory most likely; "
                "free some, or put photos of your own into Image and Mask"
            ) from error


def is_rendered(photo: Path) -> bool:
    """Return whether a photo's file is one that `render_sample` wrote."""
    with Image.open(photo) as opened:
        return opened.info.get("comment") == COMMENT


def _render(seed: int, long_side: int, index: int, files: tuple[Path, Path]) -> None:
    """Render picture `index` into the files of its photo and its mask."""
    photo, mask = render_picture(seed, index, long_side)
    Image.fromarray(np.ascontiguousarray(photo)).save(files[0], quality=90, comment=COMMENT)
    Image.fromarray(np.ascontiguousarray(mask)).save(files[1], optimize=True)
