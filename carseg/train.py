"""The training loop of both tasks."""

from __future__ import annotations

import copy
import math
from pathlib import Path

from torch import nn
from tqdm import tqdm

from carseg import weights
from carseg.ahead import on_cores
from carseg.batch_norm import calibrate_batch_norm
from carseg.checkpoint import Checkpoint, fingerprint
from carseg.columns import TRAINED
from carseg.curve import Curve
from carseg.device import Device
from carseg.errors import CarsegError, named, warn
from carseg.learner import MAX_DICE_RATE, Learner, Remembered
from carseg.losses import BCEWithLogitsLoss, DiceLoss
from carseg.material import BN_PHOTOS, Material, prepare, read_parts
from carseg.pairs import evenly, read_manifest
from carseg.params import Params
from carseg.photos import read_photo, squared_photo
from carseg.processes import ALONE, Processes, together
from carseg.provenance import record
from carseg.recorded import Recorded
from carseg.store import scratch_folder
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net

# The net that task 2 keeps is a weighted mean: these are the fractions of the untrained weights and
# of task 1's; the rest is what task 2 has learnt.
UNTRAINED_SHARE, TASK_1_SHARE = 0.5, 0.25


def train_bce(params: Params, recorded: Recorded | None = None) -> None:
    """Task 1: from the start weights, with BCE, to `u2net_segmentation.pth`.

    Raises:
        CarsegError: as `train`, the start weights do not fit, or there are more processes than
            GPUs.
        OSError, MemoryError, RuntimeError: as `train`.
    """
    with together() as processes, scratch_folder(processes) as folder:
        net = calibrated_start(params)
        loss = BCEWithLogitsLoss()
        train("bce", net, loss, params, folder, processes=processes, recorded=recorded)


def train_dice(params: Params, recorded: Recorded | None = None) -> None:
    """Task 2: from the weights of task 1, with Dice loss, to `u2net_segmentation_dice_loss.pth`.

    Raises:
        CarsegError: as `train_bce`, or the weights of task 1 do not fit.
        OSError, MemoryError, RuntimeError: as `train`.
    """
    with together() as processes, scratch_folder(processes) as folder:
        net = weights.load(params.model, Path(TRAINED["bce"]))
        remembered = None
        if params.init != "scratch":  # what begins at random has nothing to remember, all to learn
            share = UNTRAINED_SHARE + TASK_1_SHARE
            remembered = Remembered(calibrated_start(params), share)
            weights.interpolate(remembered.net, net, TASK_1_SHARE / share)
        fine = params.model_copy(update={"learning_rate": min(params.learning_rate, MAX_DICE_RATE)})
        train(
            "dice",
            net,
            DiceLoss(),
            fine,
            folder,
            remembered=remembered,
            processes=processes,
            recorded=recorded,
        )


def calibrated_start(params: Params) -> U2Net:
    """Build the untrained net; fit batch norms of given weights to the training photos.

    Raises:
        CarsegError: the weights in `pretrained/`, the manifest or the training photos cannot be
            read, or the weights are of another network.
        OSError, MemoryError, RuntimeError: as `weights.start`.
    """
    net = weights.start(params.model, Path("pretrained"), params.seed)
    if params.init != "scratch":
        device = Device(params.precision)
        pairs = evenly(read_manifest(Path("split/train.csv")), BN_PHOTOS)
        squares = on_cores(
            lambda pair: squared_photo(read_photo(pair.photo), params.image_size), pairs
        )
        photos = (photo_tensor(square)[None] for square in squares)
        calibrate_batch_norm(device.place_net(net), photos, device)
    return net


def train(
    task: str,
    net: U2Net,
    criterion: nn.Module,
    params: Params,
    folder: Path,
    *,
    remembered: Remembered | None = None,
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
    in the view `upright`; training scores are of as many photos as validate, or of all if there are
    fewer.

    Args:
        task: a member of `TASKS`; what it trains goes to `TRAINED[task]`.
        net: what to start from; it learns.
        criterion: of logits (N, 7, H, W) and masks (N, 1, H, W).
        params: of the run.
        folder: where prepared photos are kept meanwhile.
        remembered: what to interpolate towards, if anything.
        processes: of the training; each calls this with the same arguments.
        recorded: parameters, code and data to check for changes at the end, if any.

    Raises:
        CarsegError: a manifest, a photo or the checkpoint cannot be read, there are not as many
            rendered pairs as `params.renderings`, processes have other number formats or
            parameters, the loss is no longer finite (the epoch kept until then is saved), or
            parameters, code or data were changed meanwhile.
        OSError, MemoryError, RuntimeError: a disk is full or fails, or there is too little memory.
    """
    device = Device(params.precision)
    parts = read_parts(params.renderings)
    output = Path(TRAINED[task])
    _check_alike(params, device, processes)
    along = f" and {len(parts.rendered)} renderings" if parts.rendered else ""
    many = f", {processes.world_size} processes" if processes.world_size > 1 else ""
    processes.say(
        f"{task}: {len(parts.train)} photos{along}, {params.epochs} epochs, {device}{many}"
    )
    if params.batch_size < processes.world_size and processes.first:
        warn(
            f"batch_size: {params.batch_size} is less than {processes.world_size} processes, of "
            "which some have nothing to do in any step; raise it, or start fewer"
        )
    material = prepare(task, parts, params, folder, device, processes)
    steps = params.epochs * len(material.loader)
    learner = Learner(net, criterion, params.learning_rate, steps, device, processes)
    if remembered is not None:
        processes.equalise(device.place_net(remembered.net))
    kept = copy.deepcopy(net)

    digest = ""
    if processes.first:
        starts = [net] if remembered is None else [net, remembered.net]
        code = recorded.code if recorded else {}
        digest = fingerprint(params, device, processes.world_size, parts, starts, code)
    checkpoint = Checkpoint(task, digest, processes)
    curve = Curve()
    state = {**learner.parts, "kept": kept, "curve": curve}
    if checkpoint.restore(state, device):
        processes.say(f"{task}: goes on after epoch {len(curve) - 1}")

    try:
        for epoch in range(len(curve), params.epochs + 1):
            if epoch == 0:
                measured: nn.Module = net
            else:
                material.sampler.epoch = epoch
                learn(learner, material, f"{task} {epoch}", processes)
                measured = learner.averaged(remembered, material.bn_batches())
            scores = [probe.measure(measured, criterion, device) for probe in material.probes]
            if not math.isfinite(loss := sum(score.loss for score in scores)):
                remedy = "lower learning_rate" if epoch else "start from other weights"
                raise Diverged(f"the loss is {loss} after epoch {epoch}; {remedy}")
            row = curve.add(*scores)
            best, kept_epoch = curve.kept("best"), curve.kept(params.keep)
            if kept_epoch == epoch:
                kept.load_state_dict(measured.state_dict())
            del measured  # steps need the memory
            processes.say(row.line(task, params.epochs, better=best == epoch))
            if params.patience is not None and epoch - best >= params.patience:
                processes.say(f"{task}: no better epoch in {params.patience}, stopping early")
                break
            if 0 < epoch < params.epochs and processes.first:
                checkpoint.save(state)
    except Diverged as error:
        if processes.first and curve:
            weights.save(kept, output)  # what has been learnt until then
        processes.barrier()  # who ended before that is done would end the others
        saved = f"; {output} has the epoch kept until then" if curve else ""
        raise CarsegError(f"{task}: {error}{saved}") from error
    if processes.first:
        if recorded:  # before the state goes, which the next run can go on from
            recorded.check()
        weights.save(kept, output)
        curve.write(Path(f"plots/{task}.csv"))
        record(f"train_{task}", device, processes.world_size)
        checkpoint.remove()
    processes.say(f"{task}: kept epoch {kept_epoch}, {output}")


def _check_alike(params: Params, device: Device, processes: Processes) -> None:
    """Check that all processes train alike.

    Raises:
        CarsegError: they compute on different devices, in different precisions, or have read
            different parameters.
    """
    if len(kinds := set(processes.all_gather([str(device)]))) > 1:
        raise CarsegError(
            f"precision: processes compute on {', '.join(sorted(kinds))}; set it, and give all of "
            "them GPUs or none"
        )
    if len(set(processes.all_gather([repr(params)]))) > 1:
        raise CarsegError("params.yaml: was changed while processes began; run again")


class Diverged(Exception):
    """The loss is no longer finite: says where, and what to do."""


def learn(learner: Learner, material: Material, title: str, processes: Processes) -> None:
    """Train on every batch of an epoch; the loader yields this process's part of each.

    Raises:
        Diverged: a loss is not finite.
    """
    quiet = None if processes.first else True  # None: tqdm is quiet where there is no terminal
    bar = tqdm(material.loader, title, leave=False, disable=quiet)
    for batch, (photos, masks) in zip(material.shares.whole, bar, strict=True):
        # Gradients are averaged over processes, of which each has another part of the batch.
        weight = len(photos) * processes.world_size / len(batch)
        loss = processes.sum(learner.step(photos, masks, weight))
        if not math.isfinite(loss):
            names = named([material.learnt[i].photo_file for _, i in batch])
            raise Diverged(
                f"the loss is {loss} in epoch {batch[0][0]} at {names}; lower learning_rate, or "
                "look at these photos"
            )
