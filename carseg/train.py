"""The training loop of both tasks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
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
from carseg.data import EpochSampler, Squares
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.files import write_bytes, write_csv
from carseg.losses import BCELoss, DiceLoss
from carseg.metrics import Counts, count, summarise
from carseg.pairs import Pair, read_manifest
from carseg.params import Params
from carseg.photos import read_truth
from carseg.predict import mask_at
from carseg.provenance import record
from carseg.u2net import U2Net

CURVE = ("epoch", "train_loss", "val_loss", "train_dice", "val_dice", "train_iou", "val_iou")
TASKS = ("bce", "dice")
WARM_UP = 0.2  # share of all steps in which the learning rate climbs to its peak
MEMORY = 0.2  # share of all steps over which weights are averaged
# Of what the second task keeps, shares: the untrained weights, those of the first task; the rest
# is what the second task has learnt.
UNTRAINED, BEFORE = 0.15, 0.4
SETTLE_PHOTOS = 64  # enough for the statistics of a batch norm
LOOKS, LOOKS_AT_ONCE = 32, 4  # what batch norms are measured on after weights were averaged


def train_bce(params: Params) -> None:
    """Task 1: from the start weights, with BCE, to `u2net_segmentation.pth`.

    Raises:
        CarsegError: as `train`, or the start weights do not fit.
    """
    train("bce", start(params), BCELoss(), params, Path("u2net_segmentation.pth"))


def train_dice(params: Params) -> None:
    """Task 2: from the weights of task 1, with Dice loss, to `u2net_segmentation_dice_loss.pth`.

    Raises:
        CarsegError: as `train`, or the weights of task 1 do not fit.
    """
    net = weights.load(params.model, Path("u2net_segmentation.pth"))
    output = Path("u2net_segmentation_dice_loss.pth")
    if params.init == "scratch":  # random weights know nothing worth remembering
        train("dice", net, DiceLoss(), params, output)
    else:
        remembered = start(params)
        share = BEFORE / (UNTRAINED + BEFORE)
        mixed = weights.between(remembered.state_dict(), net.state_dict(), share)
        remembered.load_state_dict(mixed)
        train("dice", net, DiceLoss(), params, output, remembered)


def start(params: Params) -> U2Net:
    """Build the untrained net; given weights are fitted with batch norms for these photos.

    Raises:
        CarsegError: the weights in `pretrained/` or the training photos cannot be read.
    """
    net = weights.start(params.model, Path("pretrained"), params.seed)
    if params.init != "scratch":
        device = Device(params.precision)
        squares = Squares(read_manifest(Path("split/train.csv"))[:SETTLE_PHOTOS], params.image_size)
        photos = (photo[None] for photo, _ in squares.plain())
        weights.settle_batch_norm(device.place_net(net), photos, device)
    return net


def train(
    task: str,
    net: U2Net,
    criterion: nn.Module,
    params: Params,
    output: Path,
    remembered: U2Net | None = None,
) -> None:
    """Train on `split/train.csv`; keep the weights of the epoch that validates best.

    What is measured and kept is not the net that learns but the average of its last steps, drawn
    towards the remembered net where one is given, with batch norms measured for these weights.
    Epoch 0 is the net as it came, so training never ends below where it began. The curve goes to
    `plots/TASK.csv`: training and validation are both measured in eval mode on whole, unchanged
    photos, the training side on as many photos as validate.

    Args:
        task: a member of `TASKS`.
        net: what to start from; it learns.
        criterion: of logits (N, 7, H, W) and masks (N, 1, H, W).
        params: of the run.
        output: the weights file to write.
        remembered: what not to forget; `UNTRAINED + BEFORE` of it are in what is kept.

    Raises:
        CarsegError: a manifest or photo cannot be read, or the loss is no longer finite.
    """
    torch.manual_seed(params.seed)
    device = Device(params.precision)
    train_pairs, val_pairs = (read_manifest(Path(f"split/{part}.csv")) for part in ("train", "val"))
    # Each task sees the photos in an order and in variations of its own.
    seed = int(np.random.SeedSequence([params.seed, TASKS.index(task)]).generate_state(1)[0])
    squares = Squares(train_pairs, params.image_size, seed)
    sampler = EpochSampler(len(squares), seed)
    probes = [Probe(pairs, params) for pairs in (train_pairs[: len(val_pairs)], val_pairs)]
    loader = DataLoader(
        squares,
        batch_size=params.batch_size,
        sampler=sampler,
        num_workers=params.workers,
        persistent_workers=params.workers > 0,
        pin_memory=device.torch.type == "cuda",
    )
    net = device.place_net(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=params.learning_rate, fused=True)
    steps = params.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_cosine((step + 0.5) / steps)
    )
    average = moving_average(net, MEMORY * steps)
    kept = copy.deepcopy(net)
    looks = list(unseen_looks(squares, params.epochs))
    origin = None if remembered is None else device.place_net(remembered).state_dict()
    print(f"{task}: {len(train_pairs)} photos, {params.epochs} epochs, {device}", flush=True)

    starts = [net] if remembered is None else [net, remembered]
    checkpoint = Checkpoint(task, fingerprint(params, device, (train_pairs, val_pairs), starts))
    learner: dict[str, Stateful] = {
        "net": net,
        "optimizer": optimizer,
        "schedule": schedule,
        "average": average,
    }
    curve: list[Row] = []
    best = 0
    if (saved := checkpoint.restore(learner, device)) is not None:
        curve = [Row(epoch, Score(*train), Score(*val)) for epoch, train, val in saved["curve"]]
        best = saved["best"]
        write_bytes(output, saved["kept"].cpu().numpy().tobytes())
        print(f"{task}: goes on after epoch {curve[-1].epoch}", flush=True)
    for epoch in range(len(curve), params.epochs + 1):
        if epoch > 0:
            sampler.epoch = epoch
            batches = tqdm(loader, f"{task} {epoch}", leave=False, disable=None)
            for at, (photos, masks) in enumerate(batches):
                loss = step(net, criterion, optimizer, device, photos, masks)
                schedule.step()
                average.update_parameters(net)
                if not math.isfinite(loss):
                    order = [train_pairs[i].name for _, i in sampler]
                    names = order[at * params.batch_size :][: params.batch_size]
                    raise CarsegError(
                        f"{task}: the loss is {loss} in epoch {epoch} at {', '.join(names)}; "
                        "lower learning_rate, or look at these photos"
                    )
            learnt = average.module.state_dict()
            if origin is not None:
                learnt = weights.between(learnt, origin, UNTRAINED + BEFORE)
            kept.load_state_dict(learnt)
            with device.autocast():
                update_bn((device.place(photos) for photos in looks), kept)
        row = Row(epoch, *(probe.measure(kept, criterion, device) for probe in probes))
        curve.append(row)
        if row.val.iou > curve[best].val.iou or epoch == 0:
            best = epoch
        saved_epoch = best if params.keep == "best" else epoch
        if saved_epoch == epoch:
            weights.save(kept, output)
        print(row.line(task, params.epochs, better=best == epoch), flush=True)
        if params.patience is not None and epoch - best >= params.patience:
            print(f"{task}: no better epoch in {params.patience}, stopping early")
            break
        if 0 < epoch < params.epochs:
            content = torch.frombuffer(bytearray(output.read_bytes()), dtype=torch.uint8)
            rows = [(row.epoch, tuple(row.train), tuple(row.val)) for row in curve]
            checkpoint.save(learner, curve=rows, best=best, kept=content)
    print(f"{task}: kept epoch {saved_epoch}, {output}")
    write_csv(Path(f"plots/{task}.csv"), CURVE, [row.values() for row in curve])
    record(f"train_{task}", device)
    checkpoint.remove()


def step(
    net: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: Device,
    photos: Tensor,
    masks: Tensor,
) -> float:
    """Learn from one batch, photos (N, 3, H, W) and masks (N, 1, H, W); give the loss before."""
    net.train()
    with device.autocast():
        logits = net(device.place(photos))  # (N, 7, H, W)
    loss: Tensor = criterion(logits.float(), device.place(masks))
    optimizer.zero_grad(set_to_none=True)
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


def unseen_looks(squares: Squares, epochs: int) -> Iterator[Tensor]:
    """Give batches (N, 3, H, W) of augmented photos as none of the epochs has them.

    Averaged weights have never computed anything: the statistics of their batch norms are to be
    measured (Izmailov et al. 2018, section 3.2), on the same looks after every epoch.
    """
    rounds = math.ceil(LOOKS / len(squares))
    indices = [(epochs + 1 + more, i) for more in range(rounds) for i in range(len(squares))]
    for at in range(0, LOOKS, LOOKS_AT_ONCE):
        yield torch.stack([squares[index][0] for index in indices[at : at + LOOKS_AT_ONCE]])


class Score(NamedTuple):
    """How a net does on some photos."""

    loss: float
    dice: float
    iou: float


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


class Probe:
    """Photos to measure a net on, prepared once."""

    def __init__(self, pairs: Sequence[Pair], params: Params) -> None:
        self._squares = list(Squares(pairs, params.image_size).plain())
        self._truths = [read_truth(pair.mask) for pair in pairs]
        self._threshold = params.threshold

    def measure(self, net: nn.Module, criterion: nn.Module, device: Device) -> Score:
        """Give the means over photos; Dice and IoU at each photo's own resolution."""
        net.eval()
        losses: list[float] = []
        counts: list[Counts] = []
        for (photo, mask), truth in zip(self._squares, self._truths, strict=True):
            with torch.inference_mode():
                with device.autocast():
                    logits = net(device.place(photo[None]))
                logits = logits.float().cpu()
                losses.append(criterion(logits, mask[None]).item())
                predicted = mask_at(torch.sigmoid(logits[0, :1]), truth.shape, self._threshold)
            counts.append(count(predicted, truth))
        scores = summarise(counts)
        return Score(float(np.mean(losses)), scores["dice"], scores["iou"])
