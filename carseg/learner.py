"""A net that learns, step by step, and the average of its last steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from carseg import weights
from carseg.checkpoint import Stateful
from carseg.device import Device
from carseg.processes import Processes
from carseg.u2net import U2Net

WARM_UP = 0.2  # share of all steps in which the learning rate climbs to its peak
EMA_SHARE = 0.2  # share of all steps over which weights are averaged
MAX_DICE_RATE = 0.0005  # of learning in task 2: more undoes what task 1 has learnt


class Remembered(NamedTuple):
    """Weights that what is learnt is averaged with, and their share of that average, 0…1."""

    net: U2Net
    share: float


class Learner:
    """A net with its optimiser, its learning rate's schedule and its moving average.

    Attributes:
        parts: what changes with each step, to be saved in checkpoints.
    """

    def __init__(
        self,
        net: U2Net,
        criterion: nn.Module,
        rate: float,
        steps: int,
        device: Device,
        processes: Processes,
    ) -> None:
        """Prepare a net for learning; it is moved to the device and learns in place.

        Args:
            net: what learns.
            criterion: of logits (N, 7, H, W) and masks (N, 1, H, W).
            rate: Adam's learning rate at its peak.
            steps: how many there will be.
            device: what is computed on.
            processes: who trains; each has a learner, and all of them stay alike.
        """
        device.place_net(net)
        self._criterion = criterion
        self._device = device
        self._net = net
        self._joint = processes.wrap_ddp(net)
        self._optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            # At the middle of each step, as at the ends the rate is 0.
            lambda step: warmup_cosine((step + 0.5) / steps),
        )
        self._average = moving_average(net, EMA_SHARE * steps)
        self.parts: dict[str, Stateful] = {
            "net": net,
            "optimizer": self._optimizer,
            "schedule": self._schedule,
            "average": self._average,
        }

    def step(self, photos: Tensor, masks: Tensor, weight: float) -> float:
        """Train on one batch with `train_step`; return the weighted loss before the step.

        Args:
            photos: (N, 3, H, W), float32, normalised.
            masks: (N, 1, H, W), float32, share of car in each pixel, 0…1.
            weight: of the loss, as in `train_step`.
        """
        loss = train_step(
            self._joint, self._criterion, self._optimizer, self._device, photos, masks, weight
        )
        self._schedule.step()
        self._average.update_parameters(self._net)
        return loss

    def averaged(self, remembered: Remembered | None, batches: Iterable[Tensor]) -> U2Net:
        """Return the averaged net, to score and keep, with batch norm statistics recomputed.

        Args:
            remembered: what to interpolate towards, if anything.
            batches: photos (N, 3, H, W) to recompute the statistics on.
        """
        self._optimizer.zero_grad(set_to_none=True)  # measuring needs the memory
        net = cast(U2Net, copy.deepcopy(self._average.module))
        if remembered is not None:
            weights.interpolate(net, remembered.net, remembered.share)
        with self._device.autocast():
            update_bn((self._device.place(photos) for photos in batches), net)
        net.keep_exact()  # as when these weights are loaded again
        return net


def train_step(
    net: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: Device,
    photos: Tensor,
    masks: Tensor,
    weight: float = 1.0,
) -> float:
    """Train on photos (N, 3, H, W), masks (N, 1, H, W); return the weighted loss before the step.

    `weight` is the number of photos in this process, relative to the mean over processes. Without
    any photo, the process takes part in the computation and contributes nothing.
    """
    net.train()
    optimizer.zero_grad(set_to_none=True)  # before activations need the memory
    with device.autocast():
        logits = net(device.place(photos))  # (N, 7, H, W)
    if len(photos):
        loss: Tensor = weight * criterion(logits.float(), device.place(masks))
    else:
        loss = logits.float().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def warmup_cosine(progress: float) -> float:
    """Return the learning rate's factor, 0…1: a linear climb, then half a cosine down to 0.

    After SGDR (Loshchilov & Hutter 2017, arXiv:1608.03983), without restarts.
    The climb is long, as Adam's first steps move every weight by the full rate, however little
    it matters; in task 2 they would shake what task 1 has learnt.

    Args:
        progress: share of all steps done, 0…1, and half a step more after the last one.
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def moving_average(net: U2Net, window: float) -> AveragedModel:
    """Return an exponential moving average of a net's weights, updated after every step.

    With few photos single steps shake a net more than they teach it; the average stays calm
    (Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407).

    Args:
        net: what is averaged, and what the average starts from.
        window: how many steps it reaches back; with 1 and less it is the net itself.
    """
    decay = max(0.0, 1 - 1 / window)
    blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=blend)
    # The first update would copy, and forget the start.
    average.n_averaged.fill_(1)
    return average
