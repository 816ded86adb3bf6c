"""How a net does on whole photos, while it is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from carseg.ahead import on_cores
from carseg.curve import EpochScore
from carseg.device import Device
from carseg.metrics import Counts, count, summarise
from carseg.pairs import Pair
from carseg.params import Params
from carseg.photos import read_truth
from carseg.predict import at_size, probability
from carseg.processes import ALONE, Processes
from carseg.squares import Squares
from carseg.store import Store
from carseg.upright import stand_up


class Probe:
    """Photos to measure a net on, prepared once; each process takes its share of them."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        params: Params,
        folder: Path,
        processes: Processes = ALONE,
    ) -> None:
        """Prepare the photos.

        Args:
            pairs: the photos and their masks.
            params: of the run.
            folder: for the prepared photos; it must outlive this object.
            processes: each calls this with the same arguments.

        Raises:
            CarsegError: a file cannot be read.
            OSError: the disk is full or fails.
        """
        self._processes = processes
        pairs = pairs[processes.mine]
        self._squares = Squares(pairs, params.image_size, folder)
        self._sizes: list[tuple[int, int]] = []
        truths = on_cores(lambda pair: read_truth(pair.mask), pairs)
        self._truths = Store(folder, map(self._packed, truths))
        self._threshold = params.threshold

    def _packed(self, truth: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return a mask (H, W) as bits, and note its size."""
        height, width = truth.shape
        self._sizes.append((height, width))
        return np.packbits(truth)

    def _truth(self, i: int) -> NDArray[np.bool_]:
        """Return the i-th mask, (H, W)."""
        height, width = self._sizes[i]
        bits = np.unpackbits(self._truths[i], count=height * width)
        return bits.reshape(height, width).astype(np.bool_)

    def measure(self, net: nn.Module, criterion: nn.Module, device: Device) -> EpochScore:
        """Return the mean scores over all processes' photos.

        The loss is of one forward pass on the square; Dice and IoU are at each photo's own
        resolution, with a second pass, turned, where the car lies on its side.
        """
        net.eval()
        look = partial(probability, net, device=device)
        found: list[tuple[float, Counts]] = []
        for i, (photo, mask) in enumerate(self._squares):
            truth = self._truth(i)
            with torch.inference_mode():
                with device.autocast():
                    logits = net(device.place(photo[None]))
                logits = logits.float().cpu()
                loss = criterion(logits, mask[None]).item()
            seen = stand_up(look, photo, torch.sigmoid(logits[:, :1]), truth.shape)
            predicted = at_size(seen, truth.shape) >= self._threshold
            found.append((loss, count(predicted, truth)))
        losses, counts = zip(*self._processes.all_gather(found), strict=True)
        scores = summarise(counts)
        return EpochScore(float(np.mean(losses)), scores["dice"], scores["iou"])
