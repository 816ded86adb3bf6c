"""Training photos as a stream of augmented tensors, the same one in every run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler, default_collate

from carseg.augment import Augment, camouflage, crop_to_car, put_behind, put_elsewhere
from carseg.processes import Processes
from carseg.squares import Squares
from carseg.tensors import mask_tensor, photo_tensor

# Probabilities of what `carseg.augment` calls so.
P_ELSEWHERE, P_BEHIND, P_RECOLOUR, P_CAMOUFLAGE, P_CROP = 0.25, 0.5, 0.3, 0.5, 0.25


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Photos and masks, augmented anew in each epoch.

    An index is (epoch, position), so that a sample depends on nothing else but the seed.
    """

    def __init__(self, squares: Squares, seed: int = 0, scenes: bool = True) -> None:
        """Keep what samples are made of.

        Args:
            squares: the photos and their masks.
            seed: of all augmentation.
            scenes: whether samples show other backgrounds, cars, colours and crops, too.
        """
        self._squares = squares
        self._augment = Augment()
        self._seed = seed
        self._scenes = scenes

    def __len__(self) -> int:
        return len(self._squares)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the photo (3, S, S), normalised, and its soft mask (1, S, S), 0…1."""
        epoch, i = index
        # Not i, as numpy takes [seed, epoch, 0] for [seed, epoch], which the order is drawn from.
        random = np.random.default_rng([self._seed, epoch, 1 + i])
        photo, mask = self._squares.arrays(i)
        if self._scenes:
            photo = self._vary_scene(i, photo, mask, random)
            if random.random() < P_CROP:
                photo, mask = crop_to_car(photo, mask, random)
        photo, mask = self._augment(photo, mask, int(random.integers(2**32)))
        return photo_tensor(photo), mask_tensor(mask)

    def _vary_scene(
        self, i: int, photo: NDArray[np.uint8], mask: NDArray[np.uint8], random: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Return the i-th photo with another scene, car or colour, or some of these, or none."""
        if len(self) > 1 and random.random() < P_ELSEWHERE:
            photo = put_elsewhere(photo, mask, *self._other(i, random), random)
        if len(self) > 1 and random.random() < P_BEHIND:
            photo = put_behind(photo, mask, *self._other(i, random), random)
        if random.random() < P_RECOLOUR:
            photo = self._augment.recolour(photo, mask, int(random.integers(2**32)))
        if random.random() < P_CAMOUFLAGE:
            photo = camouflage(photo, mask, random)
        return photo

    def _other(
        self, i: int, random: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw any photo but the i-th, with its mask."""
        other = int(i + random.integers(1, len(self))) % len(self)
        return self._squares.arrays(other)

    def collate(self, samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Stack samples to photos (N, 3, H, W) and masks (N, 1, H, W); N may be 0."""
        side = (self._squares.size, self._squares.size)
        if not samples:
            return torch.empty(0, 3, *side), torch.empty(0, 1, *side)
        # In a worker it stacks straight into shared memory: if that is full, it is an error here.
        photos, masks = default_collate([*samples])
        return photos, masks


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


class Shares(Sampler[list[tuple[int, int]]]):
    """One process's part of each batch of an epoch; empty where a batch has too few photos.

    Attributes:
        whole: the epoch's batches, not only this process's part of each.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, processes: Processes) -> None:
        # Any, as torch knows no indices but whole numbers.
        self.whole: Any = BatchSampler(cast(Any, sampler), batch_size, drop_last=False)
        self._processes = processes

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (batch[self._processes.mine] for batch in self.whole)
