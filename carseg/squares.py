"""Photos and masks as squares, decoded once and kept in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from carseg.ahead import on_cores
from carseg.pairs import Pair
from carseg.photos import read_mask, read_photo, squared_mask, squared_photo
from carseg.processes import ALONE, Processes
from carseg.store import Store
from carseg.tensors import mask_tensor, photo_tensor


class Squares:
    """Pairs as the network takes them, by their position.

    Attributes:
        size: side of the squares, in pixels.
    """

    def __init__(
        self, pairs: Sequence[Pair], size: int, folder: Path, processes: Processes = ALONE
    ) -> None:
        """Prepare the photos; the processes of a machine divide the work and share the results.

        Args:
            pairs: the photos and their masks.
            size: side of the squares, in pixels.
            folder: for the prepared photos; it must outlive this object.
            processes: each calls this with the same arguments.

        Raises:
            CarsegError: a file cannot be read.
            OSError: the disk is full or fails.
        """
        share = pairs[processes.local_rank :: processes.local_world_size]
        rows = on_cores(partial(squared, size=size), share)
        stores = processes.all_gather([Store(folder, rows)])
        self._stores = stores[processes.machine]
        self._length = len(pairs)
        self.size = size

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """Return the photo (3, S, S), normalised, and its soft mask (1, S, S), 0…1."""
        photo, mask = self.arrays(i)
        return photo_tensor(photo), mask_tensor(mask)

    def arrays(self, i: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the photo (S, S, 3), RGB, and its soft mask (S, S), 0…255."""
        at, store = divmod(i, len(self._stores))
        photo, mask = np.split(self._stores[store][at], [3 * self.size**2])
        return photo.reshape(self.size, self.size, 3), mask.reshape(self.size, self.size)


def squared(pair: Pair, size: int) -> NDArray[np.uint8]:
    """Read a pair as one row, (4·size²,), uint8: RGB of each pixel, then shares of car, 0…255.

    Raises:
        CarsegError: a file cannot be read.
    """
    photo, mask = read_photo(pair.photo), read_mask(pair.mask)
    return np.append(squared_photo(photo, size), squared_mask(mask, size))
