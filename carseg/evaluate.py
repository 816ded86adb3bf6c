"""Scores and overlays of the validation photos: the untrained start against both tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from carseg import weights
from carseg.device import Device
from carseg.files import new_directory, write_csv, write_json
from carseg.metrics import Counts, count, dice, iou, summarise
from carseg.overlay import overlay
from carseg.pairs import Pair, read_manifest
from carseg.params import Params
from carseg.photos import read_photo, read_truth, squared_photo
from carseg.predict import mask_at, probability, probability_d4
from carseg.tensors import photo_tensor
from carseg.u2net import U2Net

VIEWS: Mapping[str, Callable[[U2Net, Tensor, Device], Tensor]] = {
    "plain": probability,
    "d4": probability_d4,
}
NETS: Mapping[str, Callable[[Params], U2Net]] = {
    "untrained": lambda p: weights.start(p.model, Path("pretrained"), p.seed),
    "bce": lambda p: weights.load(p.model, Path("u2net_segmentation.pth")),
    "dice": lambda p: weights.load(p.model, Path("u2net_segmentation_dice_loss.pth")),
}


def evaluate(params: Params) -> None:
    """Score every net on `split/val.csv`, at each photo's own resolution.

    Writes `metrics.json` (net → view → score), `plots/scores.csv` (a row a photo, a column a
    net, view and score) and the plain predictions of both tasks into `plots/overlays`.

    Raises:
        CarsegError: a manifest, photo or weights file cannot be read.
    """
    device = Device(params.precision)
    pairs = read_manifest(Path("split/val.csv"))
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    table: dict[str, list[object]] = {"photo": [pair.name for pair in pairs]}
    with new_directory(Path("plots/overlays")) as overlays:
        for name, make in NETS.items():
            net = device.place_net(make(params)).eval()
            masks = {
                view: predict(net, pairs, look, params, device, f"{name} {view}")
                for view, look in VIEWS.items()
            }
            counts = {view: compare(found, pairs) for view, found in masks.items()}
            metrics[name] = {view: _rounded(summarise(c)) for view, c in counts.items()}
            for view, photos in counts.items():
                table[f"{name}_{view}_dice"] = [round(dice(c), 6) for c in photos]
                table[f"{name}_{view}_iou"] = [round(iou(c), 6) for c in photos]
            if name != "untrained":
                for pair, mask in zip(pairs, masks["plain"], strict=True):
                    picture = overlay(read_photo(pair.photo), mask, read_truth(pair.mask))
                    picture.save(overlays / f"{pair.name}_{name}.jpg", quality=85)
    write_csv(Path("plots/scores.csv"), list(table), zip(*table.values(), strict=True))
    write_json(Path("metrics.json"), metrics)
    print(_report(metrics, len(pairs)))


def predict(
    net: U2Net,
    pairs: Sequence[Pair],
    look: Callable[[U2Net, Tensor, Device], Tensor],
    params: Params,
    device: Device,
    label: str,
) -> list[NDArray[np.bool_]]:
    """Give a mask a photo, bool, at the photo's own size."""
    masks = []
    for pair in tqdm(pairs, label, leave=False, disable=None):
        photo = read_photo(pair.photo)
        square = photo_tensor(squared_photo(photo, params.image_size))
        found = look(net, square[None], device)[0]
        masks.append(mask_at(found, (photo.height, photo.width), params.threshold))
    return masks


def compare(masks: Sequence[NDArray[np.bool_]], pairs: Sequence[Pair]) -> list[Counts]:
    """Count each predicted mask against its truth."""
    return [count(mask, read_truth(pair.mask)) for mask, pair in zip(masks, pairs, strict=True)]


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in scores.items()}


def _report(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], photos: int) -> str:
    columns = [(view, score) for view in VIEWS for score in ("dice", "iou")]
    lines = [f"{f'{photos} photos':<12}" + "".join(f"{f'{v} {s}':>12}" for v, s in columns)]
    for name, views in metrics.items():
        lines.append(f"{name:<12}" + "".join(f"{views[v][s]:>12.4f}" for v, s in columns))
    return "\n".join(lines)
