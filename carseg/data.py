"""Training photos as a stream of augmented tensors, the same one in every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from carseg.augment import Augment
from carseg.pairs import Pair
from carseg.photos import read_mask, read_photo, squared_mask, squared_photo
from carseg.tensors import mask_tensor, photo_tensor


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """Training photos, decoded and squared once, augmented anew at each look.

    An index is (epoch, position), so that what a look gives depends on nothing else.
    """

    def __init__(self, pairs: Sequence[Pair], size: int, seed: int = 0) -> None:
        self._photos = [squared_photo(read_photo(pair.photo), size) for pair in pairs]
        self._masks = [squared_mask(read_mask(pair.mask), size) for pair in pairs]
        self._augment = Augment()
        self._seed = seed

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Give the photo (3, H, W), normalised, and its soft mask (1, H, W), 0…1."""
        epoch, i = index
        seed = int(np.random.default_rng([self._seed, epoch, i]).integers(2**32))
        photo, mask = self._augment(self._photos[i], self._masks[i], seed)
        return photo_tensor(photo), mask_tensor(mask)

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give every photo and mask as they are."""
        for photo, mask in zip(self._photos, self._masks, strict=True):
            yield photo_tensor(photo), mask_tensor(mask)


class EpochSampler(Sampler[tuple[int, int]]):
    """Every position once an epoch, in an order that depends on seed and epoch alone."""

    def __init__(self, length: int, seed: int) -> None:
        self.epoch = 0
        self._length = length
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._length)
        return ((self.epoch, int(i)) for i in order)
