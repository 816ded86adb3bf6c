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
from torch.utils.data import DataLoader
from tqdm import tqdm

from carseg import weights
from carseg.checkpoint import Checkpoint, fingerprint
from carseg.columns import TASKS, TRAINED
from carseg.curve import Curve
from carseg.data import EpochSampler, Shares, Squares
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.learner import BEFORE, FINE, UNTRAINED, Learner
from carseg.losses import BCEWithLogitsLoss, DiceLoss
from carseg.pairs import Pair, evenly, read_manifest
from carseg.params import Params
from carseg.photos import read_photo, squared_photo
from carseg.probe import Probe
from carseg.processes import ALONE, Processes, together
from carseg.provenance import record
from carseg.recorded import Recorded
from carseg.store import scratch_folder
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net
from carseg.views import D4, turn

BN_PHOTOS = 64  # enough for the statistics of a batch norm, so at most that many
BN_LEAST, BN_BATCH = 16, 4  # at least that many, of fewer some twice or more; their batch size
NAMED = 10  # photos that a line names, at most
QUARTERED = (D4[0], D4[0], D4[1], D4[3])  # turns of those photos: none, or a quarter

Batch = tuple[Tensor, Tensor]  # photos (N, 3, S, S), masks (N, 1, S, S)


def train_bce(params: Params, recorded: Recorded | None = None) -> None:
    """Task 1: from the start weights, with BCE, to `u2net_segmentation.pth`.

    Raises:
        CarsegError: as `train`, the start weights do not fit, or there are more processes than
            GPUs.
    """
    output = Path(TRAINED["bce"])
    with together() as processes, scratch_folder(processes) as folder:
        train(
            "bce",
            start(params),
            BCEWithLogitsLoss(),
            params,
            output,
            folder,
            None,
            processes,
            recorded,
        )


def train_dice(params: Params, recorded: Recorded | None = None) -> None:
    """Task 2: from the weights of task 1, with Dice loss, to `u2net_segmentation_dice_loss.pth`.

    Raises:
        CarsegError: as `train_bce`, or the weights of task 1 do not fit.
    """
    output = Path(TRAINED["dice"])
    with together() as processes, scratch_folder(processes) as folder:
        net = weights.load(params.model, Path(TRAINED["bce"]))
        remembered = None
        if params.init != "scratch":  # what begins at random has nothing to remember, all to learn
            share = BEFORE / (UNTRAINED + BEFORE)
            remembered = start(params)
            weights.interpolate(remembered, net, share)
        fine = params.model_copy(update={"learning_rate": min(params.learning_rate, FINE)})
        train("dice", net, DiceLoss(), fine, output, folder, remembered, processes, recorded)


def start(params: Params) -> U2Net:
    """Build the untrained net; fit batch norms of given weights to the training photos.

    Raises:
        CarsegError: the weights in `pretrained/`, the manifest or the training photos cannot be
            read, or the weights are of another network.
    """
    net = weights.start(params.model, Path("pretrained"), params.seed)
    if params.init != "scratch":
        device = Device(params.precision)
        pairs = evenly(read_manifest(Path("split/train.csv")), BN_PHOTOS)
        squares = (squared_photo(read_photo(pair.photo), params.image_size) for pair in pairs)
        photos = (photo_tensor(square)[None] for square in squares)
        weights.calibrate_batch_norm(device.place_net(net), photos, device)
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
    recorded: Recorded | None = None,
) -> None:
    """Train on `split/train.csv`; keep the epoch that `params.keep` says, last or best by val IoU.

    With `params.renderings`, the pairs of `renderings/pairs.csv` train along; nothing else is done
    with them.

    The net that is scored and kept is a moving average of the learning net's weights, interpolated
    towards the remembered net where one is given, with batch norm statistics recomputed. Epoch 0 is
    the initial net, so the best is never below the start. The curve goes to `plots/TASK.csv`:
    training and validation scores, both in eval mode on whole photos, not augmented, Dice and IoU
    in the view `upright`; those of training on as many photos as validate.

    Args:
        task: a member of `TASKS`.
        net: what to start from; it learns.
        criterion: of logits (N, 7, H, W) and masks (N, 1, H, W).
        params: of the run.
        output: the weights file to write.
        folder: where prepared photos are kept meanwhile.
        remembered: a net to interpolate towards, by `UNTRAINED + BEFORE`, if any.
        processes: of the training; each calls this with the same arguments.
        recorded: parameters and code to check for changes at the end, if any.

    Raises:
        CarsegError: a manifest, a photo or the checkpoint cannot be read, there are not as many
            rendered pairs as `params.renderings`, the loss is no longer finite, or parameters or
            code were changed meanwhile.
    """
    device = Device(params.precision)
    parts = [read_manifest(Path(f"split/{part}.csv")) for part in ("train", "val")]
    manifest = Path("renderings/pairs.csv")
    rendered = read_manifest(manifest) if params.renderings else []
    if len(rendered) != params.renderings:
        raise CarsegError(
            f"{manifest}: has {len(rendered)} pairs, but renderings is {params.renderings}; rerun "
            "renderings"
        )
    parts.append(rendered)
    learnt = parts[0] + rendered
    along = f" and {len(rendered)} renderings" if rendered else ""
    many = f", {processes.world_size} processes" if processes.world_size > 1 else ""
    processes.say(f"{task}: {len(parts[0])} photos{along}, {params.epochs} epochs, {device}{many}")
    sampler, shares, loader, probes, bn_batches = _prepare(
        task, params, parts, folder, device, processes
    )
    learner = Learner(
        net, criterion, params.learning_rate, params.epochs * len(loader), device, processes
    )
    if remembered is not None:
        device.place_net(remembered)
    kept = copy.deepcopy(net)

    starts = [net] if remembered is None else [net, remembered]
    digest = (
        fingerprint(params, device, processes.world_size, parts, starts) if processes.first else ""
    )
    checkpoint = Checkpoint(task, digest, processes)
    curve = Curve()
    state = {**learner.parts, "kept": kept, "curve": curve}
    if checkpoint.restore(state, device):
        processes.say(f"{task}: goes on after epoch {len(curve) - 1}")

    try:
        for epoch in range(len(curve), params.epochs + 1):
            if epoch == 0:
                measured: nn.Module = device.place_net(copy.deepcopy(net))
            else:
                sampler.epoch = epoch
                learn(learner, loader, shares, learnt, f"{task} {epoch}", processes)
                measured = learner.averaged(remembered, bn_batches)
            scores = [probe.measure(measured, criterion, device) for probe in probes]
            if not math.isfinite(loss := sum(score.loss for score in scores)):
                remedy = "lower learning_rate" if epoch else "start from other weights"
                raise Diverged(f"the loss is {loss} after epoch {epoch}; {remedy}")
            row = curve.add(*scores)
            kept_epoch = curve.best if params.keep == "best" else epoch
            if kept_epoch == epoch:
                kept.load_state_dict(measured.state_dict())
            del measured  # steps need the memory
            processes.say(row.line(task, params.epochs, better=curve.best == epoch))
            if params.patience is not None and epoch - curve.best >= params.patience:
                processes.say(f"{task}: no better epoch in {params.patience}, stopping early")
                break
            if 0 < epoch < params.epochs and processes.first:
                checkpoint.save(state)
    except Diverged as error:
        if processes.first and curve:
            weights.save(kept, output)  # what has been learnt until then
        processes.barrier()  # who ended before that is done would end the others
        raise CarsegError(f"{task}: {error}") from error
    if processes.first:
        if recorded:  # before the state goes, which the next run can go on from
            recorded.check()
        weights.save(kept, output)
        curve.write(Path(f"plots/{task}.csv"))
        record(f"train_{task}", device, processes.world_size)
        checkpoint.remove()
    processes.say(f"{task}: kept epoch {kept_epoch}, {output}")


class Material(NamedTuple):
    """The photos of a training, as it reads them."""

    sampler: EpochSampler
    shares: Shares
    loader: DataLoader[Batch]
    probes: list[Probe]  # to measure on: training, validation
    bn_batches: list[Tensor]  # (N, 3, S, S) each, that batch norms are measured on


def _prepare(
    task: str,
    params: Params,
    parts: Sequence[Sequence[Pair]],
    folder: Path,
    device: Device,
    processes: Processes,
) -> Material:
    train_pairs, val_pairs, rendered = parts
    # Each task sees the photos in an order and in variations of its own.
    seed = int(np.random.SeedSequence([params.seed, TASKS.index(task)]).generate_state(1)[0])
    # A net that knows nothing learns more from photos as they are than from what puzzles one
    # that knows cars.
    scenes = params.init != "scratch"
    learnt = [*train_pairs, *rendered]
    squares = Squares(learnt, params.image_size, folder, seed, processes, scenes)
    sampler = EpochSampler(len(squares), seed)
    probes = [
        Probe(pairs, params, folder, processes)
        for pairs in (evenly(train_pairs, len(val_pairs)), val_pairs)
    ]
    shares = Shares(sampler, params.batch_size, processes)
    loader = DataLoader(
        squares,
        batch_sampler=shares,
        collate_fn=squares.collate,
        num_workers=params.workers,
        persistent_workers=params.workers > 0,
        pin_memory=device.torch.type == "cuda",
    )
    batches = batch_norm_batches(squares, len(train_pairs))
    bn_batches = [batch[processes.mine].clone() for batch in batches]
    return Material(sampler, shares, loader, probes, bn_batches)


class Diverged(Exception):
    """The loss is no longer finite: says where, and what to do."""


def learn(
    learner: Learner,
    loader: DataLoader[Batch],
    shares: Shares,
    pairs: Sequence[Pair],
    title: str,
    processes: Processes,
) -> None:
    """Train on every batch of an epoch; the loader yields this process's part of each.

    Raises:
        Diverged: a loss is not finite.
    """
    quiet = None if processes.first else True  # None: where nobody looks at a terminal
    bar = tqdm(loader, title, leave=False, disable=quiet)
    for batch, (photos, masks) in zip(shares.whole(), bar, strict=True):
        # Gradients are averaged over processes, of which each has another part of the batch.
        weight = len(photos) * processes.world_size / len(batch)
        loss = processes.sum(learner.step(photos, masks, weight))
        if not math.isfinite(loss):
            epoch, more = batch[0][0], ", …" if len(batch) > NAMED else ""
            names = ", ".join(pairs[i].photo_file for _, i in batch[:NAMED]) + more
            raise Diverged(
                f"the loss is {loss} in epoch {epoch} at {names}; lower learning_rate, or look at "
                "these photos"
            )


def batch_norm_batches(squares: Squares, first: int) -> Iterator[Tensor]:
    """Yield batches (N, 3, H, W) of some of so many first photos, unaugmented, half of them turned.

    Batch norm statistics do not fit averaged weights and are recomputed (Izmailov et al. 2018,
    section 3.2), on photos as they are at prediction, not as augmentation changes them ("precise
    BN", Wu & Johnson 2021, arXiv:2105.07576). These are `BN_PHOTOS` at most, evenly picked, in
    whole batches, so up to three are left out; at least `BN_LEAST`, for which some may repeat.
    """
    photos = evenly(range(first), BN_PHOTOS)
    count = max(BN_LEAST, len(photos)) // BN_BATCH * BN_BATCH

    def turned(i: int) -> int:
        """Return the turn's number: another one where a photo would be seen again as before."""
        again = i // len(photos) if len(photos) % len(QUARTERED) == 0 else 0
        return (i + 2 * again) % len(QUARTERED)

    for at in range(0, count, BN_BATCH):
        yield torch.stack(
            [
                turn(squares.as_it_is(photos[i % len(photos)])[0], QUARTERED[turned(i)])
                for i in range(at, at + BN_BATCH)
            ]
        )
