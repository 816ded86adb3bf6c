"""The training loop of both tasks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader
from tqdm import tqdm

from carseg import weights
from carseg.checkpoint import Checkpoint, Stateful, fingerprint
from carseg.data import EpochSampler, Shares, Squares
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.files import write_csv
from carseg.losses import BCELoss, DiceLoss
from carseg.pairs import read_manifest
from carseg.params import Params
from carseg.photos import read_photo, squared_photo
from carseg.predict import D4, turn
from carseg.probe import Probe, Score
from carseg.processes import ALONE, Processes, together
from carseg.provenance import record
from carseg.store import room
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net

CURVE = ("epoch", "train_loss", "val_loss", "train_dice", "val_dice", "train_iou", "val_iou")
TASKS = ("bce", "dice")
WARM_UP = 0.2  # share of all steps in which the learning rate climbs to its peak
MEMORY = 0.2  # share of all steps over which weights are averaged
# Of what the second task keeps, shares: the untrained weights, those of the first task; the rest is
# what the second task has learnt.
UNTRAINED, BEFORE = 0.15, 0.4
FINE = 0.0005  # the second task's learning rate, at most: more undoes what the first has learnt
SETTLE_PHOTOS = 64  # enough for the statistics of a batch norm
LOOKS, LOOKS_AT_ONCE = 16, 4  # what batch norms are measured on after weights were averaged
LAID = (D4[0], D4[0], D4[1], D4[3])  # how photos are turned for that: as held, or by a quarter


def train_bce(params: Params) -> None:
    """Task 1: from the start weights, with BCE, to `u2net_segmentation.pth`.

    Raises:
        CarsegError: as `train`, or the start weights do not fit.
    """
    output = Path("u2net_segmentation.pth")
    with together() as processes, room(processes) as folder:
        train("bce", start(params), BCELoss(), params, output, folder, processes=processes)


def train_dice(params: Params) -> None:
    """Task 2: from the weights of task 1, with Dice loss, to `u2net_segmentation_dice_loss.pth`.

    Raises:
        CarsegError: as `train`, or the weights of task 1 do not fit.
    """
    output = Path("u2net_segmentation_dice_loss.pth")
    with together() as processes, room(processes) as folder:
        net = weights.load(params.model, Path("u2net_segmentation.pth"))
        remembered = None
        if params.init != "scratch":  # what begins at random has nothing to remember, all to learn
            share = BEFORE / (UNTRAINED + BEFORE)
            remembered = start(params)
            weights.approach(remembered, net, share)
        fine = params.model_copy(update={"learning_rate": min(params.learning_rate, FINE)})
        train("dice", net, DiceLoss(), fine, output, folder, remembered, processes)


def start(params: Params) -> U2Net:
    """Build the untrained net; given weights are fitted with batch norms for these photos.

    Raises:
        CarsegError: the weights in `pretrained/` or the training photos cannot be read.
    """
    net = weights.start(params.model, Path("pretrained"), params.seed)
    if params.init != "scratch":
        device = Device(params.precision)
        pairs = read_manifest(Path("split/train.csv"))[:SETTLE_PHOTOS]
        squares = (squared_photo(read_photo(pair.photo), params.image_size) for pair in pairs)
        photos = (photo_tensor(square)[None] for square in squares)
        weights.settle_batch_norm(device.place_net(net), photos, device)
    return net


def train(
    task: str,
    net: U2Net,
    criterion: nn.Module,
    params: Params,
    output: Path,
    folder: Path,
    remembered: U2Net | None = None,
    processes: Processes = ALONE,
) -> None:
    """Train on `split/train.csv`; keep the weights of the best epoch, or of the last.

    The best is the one with the highest validation IoU; `params.keep` says which is kept.

    What is measured and kept is not the net that learns but the average of its last steps, drawn
    towards the remembered net where one is given, with batch norms measured for these weights.
    Epoch 0 is the net as it came, so the best is never below where training began. The curve goes
    to `plots/TASK.csv`: training and validation are both measured in eval mode on whole, unchanged
    photos, the training side on as many photos as validate.

    Args:
        task: a member of `TASKS`.
        net: what to start from; it learns.
        criterion: of logits (N, 7, H, W) and masks (N, 1, H, W).
        params: of the run.
        output: the weights file to write.
        folder: where prepared photos are kept meanwhile.
        remembered: what not to forget; `UNTRAINED + BEFORE` of it are in what is kept.
        processes: who trains; each calls this with the same arguments.

    Raises:
        CarsegError: a manifest, a photo or the state to go on from cannot be read, or the loss is
            no longer finite.
    """
    torch.manual_seed(params.seed)
    device = Device(params.precision)
    train_pairs, val_pairs = (read_manifest(Path(f"split/{part}.csv")) for part in ("train", "val"))
    # Each task sees the photos in an order and in variations of its own.
    seed = int(np.random.SeedSequence([params.seed, TASKS.index(task)]).generate_state(1)[0])
    # A net that knows nothing learns more from photos as they are than from what puzzles one
    # that knows cars.
    staged = params.init != "scratch"
    squares = Squares(train_pairs, params.image_size, folder, seed, processes, staged)
    sampler = EpochSampler(len(squares), seed)
    probes = [
        Probe(pairs, params, folder, processes)
        for pairs in (train_pairs[: len(val_pairs)], val_pairs)
    ]
    loader = DataLoader(
        squares,
        batch_sampler=Shares(sampler, params.batch_size, processes),
        collate_fn=squares.collate,
        num_workers=params.workers,
        persistent_workers=params.workers > 0,
        pin_memory=device.torch.type == "cuda",
    )
    net = device.place_net(net, learning=True)
    joint = processes.join(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=params.learning_rate, fused=True)
    steps = params.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine((step + 0.5) / steps)
    )
    average = moving_average(net, MEMORY * steps)
    kept = copy.deepcopy(net)
    looks = [look[processes.mine] for look in plain_looks(squares)]
    if remembered is not None:
        device.place_net(remembered, learning=True)
    many = f", {processes.count} processes" if processes.count > 1 else ""
    processes.say(f"{task}: {len(train_pairs)} photos, {params.epochs} epochs, {device}{many}")

    starts = [net] if remembered is None else [net, remembered]
    parts = (train_pairs, val_pairs)
    print_of = fingerprint(params, device, processes.count, parts, starts)
    checkpoint = Checkpoint(task, print_of, processes)
    learner: dict[str, Stateful] = {
        "net": net,
        "optimizer": optimizer,
        "schedule": schedule,
        "average": average,
        "kept": kept,
    }
    curve: list[Row] = []
    best = 0
    if (saved := checkpoint.restore(learner, device)) is not None:
        curve = [Row(epoch, Score(*train), Score(*val)) for epoch, train, val in saved["curve"]]
        best = saved["best"]
        processes.say(f"{task}: goes on after epoch {curve[-1].epoch}")
    for epoch in range(len(curve), params.epochs + 1):
        if epoch == 0:
            measured: nn.Module = device.place_net(copy.deepcopy(net))
        else:
            sampler.epoch = epoch
            quiet = None if processes.first else True  # None: where nobody looks at a terminal
            for at, (photos, masks) in enumerate(
                tqdm(loader, f"{task} {epoch}", leave=False, disable=quiet)
            ):
                whole = min(params.batch_size, len(squares) - at * params.batch_size)
                share = len(photos) * processes.count / whole
                loss = step(joint, criterion, optimizer, device, photos, masks, share)
                schedule.step()
                average.update_parameters(net)
                if not math.isfinite(loss := processes.sum(loss)):
                    if processes.first:
                        weights.save(kept, output)  # what has been learnt until then
                    order = [train_pairs[i].name for _, i in sampler]
                    names = order[at * params.batch_size :][: params.batch_size]
                    raise CarsegError(
                        f"{task}: the loss is {loss} in epoch {epoch} at {', '.join(names)}; "
                        "lower learning_rate, or look at these photos"
                    )
            optimizer.zero_grad(set_to_none=True)  # measuring needs the memory
            measured = device.place_net(drawn(average, remembered))
            with device.autocast():
                update_bn((device.place(photos) for photos in looks), measured)
        row = Row(epoch, *(probe.measure(measured, criterion, device) for probe in probes))
        curve.append(row)
        if row.val.iou > curve[best].val.iou or epoch == 0:
            best = epoch
        kept_epoch = best if params.keep == "best" else epoch
        if kept_epoch == epoch:
            kept.load_state_dict(measured.state_dict())
        del measured  # steps need the memory
        processes.say(row.line(task, params.epochs, better=best == epoch))
        if params.patience is not None and epoch - best >= params.patience:
            processes.say(f"{task}: no better epoch in {params.patience}, stopping early")
            break
        if 0 < epoch < params.epochs and processes.first:
            rows = [(row.epoch, tuple(row.train), tuple(row.val)) for row in curve]
            checkpoint.save(learner, curve=rows, best=best)
    if processes.first:
        weights.save(kept, output)
        write_csv(Path(f"plots/{task}.csv"), CURVE, [row.values() for row in curve])
        record(f"train_{task}", device, processes.count)
        checkpoint.remove()
    processes.say(f"{task}: kept epoch {kept_epoch}, {output}")


def step(
    net: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: Device,
    photos: Tensor,
    masks: Tensor,
    share: float = 1.0,
) -> float:
    """Learn from one batch, photos (N, 3, H, W) and masks (N, 1, H, W); give the loss before.

    `share` weighs the loss: what this process has of a batch, against the mean of all processes.
    With no photo at all, it computes along with the others and adds nothing.
    """
    net.train()
    optimizer.zero_grad(set_to_none=True)  # before activations need the memory
    with device.autocast():
        logits = net(device.place(photos, learning=True))  # (N, 7, H, W)
    if len(photos):
        loss: Tensor = share * criterion(logits.float(), device.place(masks))
    else:
        loss = logits.float().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.item()


def warm_cosine(progress: float) -> float:
    """Give the learning rate's factor, 0…1: a linear climb, then half a cosine down to 0.

    The climb is long, as Adam's first steps move every weight by the full rate, however little
    it matters; in task 2 they would shake what task 1 has learnt.

    Args:
        progress: share of all steps done, 0…1 (SGDR, Loshchilov & Hutter 2017, without restarts).
    """
    if progress < WARM_UP:
        return progress / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def moving_average(net: U2Net, memory: float) -> AveragedModel:
    """Give an exponential moving average of a net's weights, updated by the step.

    With few photos single steps shake a net more than they teach it; the average stays calm
    (Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407).

    Args:
        net: what is averaged, and what the average starts from.
        memory: how many steps it reaches back; with 1 and less it is the net itself.
    """
    decay = max(0.0, 1 - 1 / memory)
    blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average = AveragedModel(net, multi_avg_fn=blend)
    # The first update would copy, and forget the start.
    average.n_averaged.fill_(1)
    return average


def drawn(average: AveragedModel, remembered: U2Net | None) -> nn.Module:
    """Give a net of the averaged weights, drawn towards those of the remembered net, if any."""
    net = copy.deepcopy(average.module)
    if remembered is not None:
        weights.approach(net, remembered, UNTRAINED + BEFORE)
    return net


def plain_looks(squares: Squares) -> Iterator[Tensor]:
    """Give batches (N, 3, H, W) of unchanged photos, half of them turned by a quarter.

    Averaged weights have never computed anything: the statistics of their batch norms are to be
    measured (Izmailov et al. 2018, section 3.2), and on photos as they will be met, not as
    augmentation changes them ("precise BN", Wu & Johnson 2021, arXiv:2105.07576). There are at
    least `LOOKS`, some photos turning up again where there are fewer of them.
    """
    photos = [photo for photo, _ in islice(squares.plain(), SETTLE_PHOTOS)]
    count = max(LOOKS, len(photos)) // LOOKS_AT_ONCE * LOOKS_AT_ONCE
    looks = [turn(photos[i % len(photos)], LAID[i % len(LAID)]) for i in range(count)]
    for at in range(0, count, LOOKS_AT_ONCE):
        yield torch.stack(looks[at : at + LOOKS_AT_ONCE])


class Row(NamedTuple):
    """One epoch of the curve."""

    epoch: int
    train: Score
    val: Score

    def values(self) -> list[object]:
        """Give the row in the order of `CURVE`."""
        pairs = zip(self.train, self.val, strict=True)
        return [self.epoch, *(round(value, 6) for pair in pairs for value in pair)]

    def line(self, task: str, epochs: int, better: bool) -> str:
        """Give the row for reading."""
        loss, dice, iou = (
            f"{name} {train:.4f} | {val:.4f}"
            for name, train, val in zip(Score._fields, self.train, self.val, strict=True)
        )
        best = "  best so far" if better else ""
        return f"{task} {self.epoch:>3}/{epochs}  train | val  {loss}   {dice}   {iou}{best}"
