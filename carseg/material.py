"""The photos of a training: all to learn from, some to measure on, some for batch norms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from carseg.columns import TASKS
from carseg.data import EpochSampler, Samples, Shares
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.pairs import Pair, evenly, read_manifest
from carseg.params import Params
from carseg.probe import Probe
from carseg.processes import Processes
from carseg.squares import Squares
from carseg.views import D4, turn

BN_PHOTOS = 64  # at most; enough for the statistics of a batch norm
BN_LEAST, BN_BATCH = 16, 4  # at least so many, fewer photos repeatedly; their batch size
QUARTERED = (D4[0], D4[0], D4[1], D4[3])  # turns of those photos: none, or a quarter

Batch = tuple[Tensor, Tensor]  # photos (N, 3, S, S), masks (N, 1, S, S)


class Parts(NamedTuple):
    """The pairs of a training, by what is done with them."""

    train: list[Pair]
    val: list[Pair]
    rendered: list[Pair]  # train along, and nothing else is done with them

    @property
    def learnt(self) -> list[Pair]:
        """Return all that train."""
        return [*self.train, *self.rendered]


class Material(NamedTuple):
    """The photos of a training, prepared for a process's part in it."""

    learnt: list[Pair]  # that train
    sampler: EpochSampler  # of their positions
    shares: Shares
    loader: DataLoader[Batch]  # of this process's part of each batch
    probes: list[Probe]  # to measure on: training photos, as many as validate; those that validate
    bn_batches: Callable[[], Iterator[Tensor]]  # (N, 3, S, S), that batch norms are measured on


def read_parts(renderings: int) -> Parts:
    """Read the manifests of the split, and of so many rendered pairs.

    Raises:
        CarsegError: a manifest cannot be read, or there are not as many rendered pairs.
    """
    train, val = (read_manifest(Path(f"split/{part}.csv")) for part in ("train", "val"))
    manifest = Path("renderings/pairs.csv")
    rendered = read_manifest(manifest) if renderings else []
    if len(rendered) != renderings:
        raise CarsegError(
            f"{manifest}: has {len(rendered)} pairs, but renderings is {renderings}; run dvc repro"
        )
    return Parts(train, val, rendered)


def prepare(
    task: str, parts: Parts, params: Params, folder: Path, device: Device, processes: Processes
) -> Material:
    """Decode all photos into files in `folder`, and build what reads them.

    Args:
        task: a member of `TASKS`; each has an order and variations of its own.
        parts: the photos and their masks.
        params: of the run.
        folder: for the prepared photos; it must outlive what is returned.
        device: what is computed on.
        processes: of the training; each calls this with the same arguments.

    Raises:
        CarsegError: a file cannot be read.
        OSError: the disk is full or fails.
    """
    seed = int(np.random.SeedSequence([params.seed, TASKS.index(task)]).generate_state(1)[0])
    # From scratch a net learns more from photos as they are: scenes made to puzzle help one that
    # knows cars.
    scenes = params.init != "scratch"
    learnt = parts.learnt
    squares = Squares(learnt, params.image_size, folder, processes)
    samples = Samples(squares, seed, scenes)
    sampler = EpochSampler(len(samples), seed)
    shares = Shares(sampler, params.batch_size, processes)
    loader = DataLoader(
        samples,
        batch_sampler=shares,
        collate_fn=samples.collate,
        num_workers=params.workers,
        persistent_workers=params.workers > 0,
        pin_memory=device.torch.type == "cuda",
    )
    probes = [
        Probe(pairs, params, folder, processes)
        for pairs in (evenly(parts.train, len(parts.val)), parts.val)
    ]

    def bn_batches() -> Iterator[Tensor]:
        """Yield this process's part of each batch, read anew each time: memory is for the net."""
        for batch in batch_norm_batches(squares, len(parts.train)):
            yield batch[processes.mine]

    return Material(learnt, sampler, shares, loader, probes, bn_batches)


def batch_norm_batches(squares: Squares, first: int) -> Iterator[Tensor]:
    """Yield batches (4, 3, S, S) of the `first` first photos, unaugmented, half of them turned.

    Batch norm statistics do not fit averaged weights and are recomputed (Izmailov et al. 2018,
    section 3.2), on photos as they are at prediction, not as augmentation changes them ("precise
    BN", Wu & Johnson 2021, arXiv:2105.07576). `BN_PHOTOS` at most are picked, evenly; what would
    not fill the last batch is left out. Where they are fewer than `BN_LEAST`, they repeat.
    """
    photos = evenly(range(first), BN_PHOTOS)
    count = max(BN_LEAST, len(photos)) // BN_BATCH * BN_BATCH

    def turned(i: int) -> int:
        """Return the turn's number: a multiple of four photos, seen again, are turned otherwise."""
        again = i // len(photos) if len(photos) % len(QUARTERED) == 0 else 0
        return (i + 2 * again) % len(QUARTERED)

    for at in range(0, count, BN_BATCH):
        yield torch.stack(
            [
                turn(squares[photos[i % len(photos)]][0], QUARTERED[turned(i)])
                for i in range(at, at + BN_BATCH)
            ]
        )
