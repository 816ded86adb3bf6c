"""How a net does on whole photos, while it is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from carseg.data import Squares
from carseg.device import Device
from carseg.metrics import Counts, count, summarise
from carseg.pairs import Pair
from carseg.params import Params
from carseg.photos import read_truth
from carseg.predict import mask_at
from carseg.processes import ALONE, Processes


class Score(NamedTuple):
    """How a net does on some photos."""

    loss: float
    dice: float
    iou: float


class Probe:
    """Photos to measure a net on, prepared once; each process takes its share of them."""

    def __init__(self, pairs: Sequence[Pair], params: Params, processes: Processes = ALONE) -> None:
        self._processes = processes
        pairs = pairs[processes.mine]
        self._squares = list(Squares(pairs, params.image_size).plain())
        self._truths = [read_truth(pair.mask) for pair in pairs]
        self._threshold = params.threshold

    def measure(self, net: nn.Module, criterion: nn.Module, device: Device) -> Score:
        """Give the means over photos; Dice and IoU at each photo's own resolution."""
        net.eval()
        found: list[tuple[float, Counts]] = []
        for (photo, mask), truth in zip(self._squares, self._truths, strict=True):
            with torch.inference_mode():
                with device.autocast():
                    logits = net(device.place(photo[None]))
                logits = logits.float().cpu()
                loss = criterion(logits, mask[None]).item()
                predicted = mask_at(torch.sigmoid(logits[0, :1]), truth.shape, self._threshold)
            found.append((loss, count(predicted, truth)))
        losses, counts = zip(*self._processes.gather(found), strict=True)
        scores = summarise(counts)
        return Score(float(np.mean(losses)), scores["dice"], scores["iou"])
