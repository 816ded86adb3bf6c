"""Scores and overlays of the validation photos: the untrained start against both tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from carseg import weights
from carseg.clean import to_mask
from carseg.closer import look_closer
from carseg.columns import LAID, NETS, QUARTERS, TASKS, TRAINED, TURNS, VIEWS, view_name
from carseg.device import Device
from carseg.edges import boundary_iou, hd95
from carseg.files import new_directory, read_csv, write_csv, write_json
from carseg.metrics import Counts, count, dice, iou, summarise
from carseg.overlay import overlay
from carseg.pairs import Pair, read_manifest
from carseg.params import Params
from carseg.photos import read_photo, read_truth
from carseg.predict import at_size, combine, combine_two, predict_views, probability
from carseg.provenance import provenance, record
from carseg.recorded import Recorded
from carseg.report import SHOWN, Shown, show, write_report
from carseg.scores import Scores, as_table
from carseg.spread import spreads
from carseg.tensors import square_tensor
from carseg.u2net import U2Net
from carseg.upright import find_upright, upright_views
from carseg.views import D4, TURNED, View, turn

Mask = NDArray[np.bool_]


class Judged(NamedTuple):
    """What one net does with one photo."""

    counts: Mapping[str, Counts]  # by view
    scores: Mapping[str, Scores]  # by view
    turned: Mapping[str, float]  # IoU by turn
    lying: bool  # whether its true car lies on its side


def evaluate(params: Params, recorded: Recorded | None = None) -> None:
    """Score every net on `split/val.csv`, at each photo's own resolution.

    Writes `metrics.json` (net → view → score), `plots/scores.csv` (a row a photo), what both tasks
    predict in the view `upright` into `plots/overlays`, and `report.html`, which shows all of it.

    Raises:
        CarsegError: a manifest, photo or weights file cannot be read, or parameters, code
            or data were changed meanwhile.
        OSError, MemoryError, RuntimeError: a curve cannot be read, a disk is full or fails, or
            there is too little memory.
    """
    device = Device(params.precision)
    pairs = read_manifest(Path("split/val.csv"))
    found: dict[str, list[Judged]] = {}  # by net, of each photo
    with new_directory(Path("plots/overlays")) as overlays:
        for name in NETS:
            net = device.place_net(net_called(name, params)).eval()
            found[name] = [
                _judge_pair(name, net, pair, params, device, overlays)
                for pair in tqdm(pairs, name, leave=False, disable=None)
            ]
        net = device.place_net(net_called("dice", params)).eval()
        shown = _worst_first(net, pairs, found, params, device, overlays)
        if recorded:  # before anything of an earlier run is replaced
            recorded.check()
    metrics = {name: {view: _means(found[name], view) for view in VIEWS} for name in NETS}
    table = _table(pairs, found)
    spread = {
        name: {view: spreads(_by_score(found[name], view)) for view in VIEWS} for name in NETS
    }
    write_csv(Path("plots/scores.csv"), list(table), zip(*table.values(), strict=True))
    write_report(
        Path("report.html"),
        scores=spread,
        curves={task: read_csv(Path(f"plots/{task}.csv")) for task in TASKS},
        shown=shown,
        pairs={"train": read_manifest(Path("split/train.csv")), "val": pairs},
        params=params,
        machine=provenance(device),
    )
    if recorded:  # again, as the report takes a while
        recorded.check()
    write_json(Path("metrics.json"), metrics)
    record("evaluate", device)
    print(as_table(metrics))


def _judge_pair(
    name: str, net: U2Net, pair: Pair, params: Params, device: Device, overlays: Path
) -> Judged:
    """Judge what a net does with a photo; save an overlay of what training has made of it."""
    photo, truth = read_photo(pair.photo), read_truth(pair.mask)
    masks = predict_masks(net, photo, params, device)
    if name in TASKS:
        picture = overlay(photo, masks["upright"], truth)
        picture.save(overlays / f"{pair.name}_{name}.jpg", quality=85)
    return judge(masks, truth)


def _worst_first(
    net: U2Net,
    pairs: Sequence[Pair],
    found: Mapping[str, Sequence[Judged]],
    params: Params,
    device: Device,
    overlays: Path,
) -> list[Shown]:
    """Return what the report shows of task 2's net, the photos with the lowest IoU first."""
    ious = {name: [judged.scores["upright"].iou for judged in found[name]] for name in NETS}
    return [
        show(
            pairs[i],
            (overlays / f"{pairs[i].name}_dice.jpg").read_bytes(),
            probability_at(net, pairs[i], params, device),
            ious["dice"][i],
            ious["untrained"][i],
        )
        for i in sorted(range(len(pairs)), key=ious["dice"].__getitem__)[:SHOWN]
    ]


def _table(pairs: Sequence[Pair], found: Mapping[str, Sequence[Judged]]) -> dict[str, list[object]]:
    """Return the columns of `plots/scores.csv`."""
    table: dict[str, list[object]] = {
        "photo": [pair.name for pair in pairs],
        "lying": [int(judged.lying) for judged in found["untrained"]],
    }
    for name in NETS:
        table |= _columns(name, found[name])
    return table


def net_called(name: str, params: Params) -> U2Net:
    """Return one of `NETS`."""
    if name in TRAINED:
        return weights.load(params.model, Path(TRAINED[name]))
    return weights.start(params.model, Path("pretrained"), params.seed)


def predict_masks(
    net: U2Net, photo: Image.Image, params: Params, device: Device
) -> dict[str, Mask]:
    """Predict a photo in all turns and flips: a mask for each of `VIEWS` and `TURNS`.

    All are (H, W), as the photo is held: those of `TURNS` are turned back.
    """
    size = params.image_size
    look = partial(probability, net, device=device)
    shape = (photo.height, photo.width)
    seen = predict_views(look, square_tensor(photo, size))  # (8, 1, S, S)

    def upright(quarters: int) -> NDArray[np.float32]:
        """Return what `find_upright` finds in the photo turned so far, computed from `seen`."""
        held = turn(seen[quarters], (quarters, False))
        views = upright_views(held, shape if quarters % 2 == 0 else shape[::-1])
        return at_size(combine_two(seen[[(quarters + more) % 4 for more, _ in views]]), shape)

    def again(found: NDArray[np.float32], views: Sequence[View]) -> NDArray[np.float32]:
        return look_closer(look, photo, found, views, size)

    def cut(values: NDArray[np.float32]) -> Mask:
        return to_mask(values, params.threshold, params.cleanup)

    masks: dict[str, Mask] = {}
    for quarters in QUARTERS:
        stood = upright(quarters)
        found = (at_size(seen[quarters], shape), stood, again(stood, TURNED))
        for name, values in zip(LAID, found, strict=True):
            masks[view_name(name, quarters)] = cut(values)
    d4 = at_size(combine(seen), shape)
    masks |= {"d4": cut(d4), "d4_closer": cut(again(d4, D4))}
    return {name: masks[name] for name in (*VIEWS, *TURNS)}


def probability_at(net: U2Net, pair: Pair, params: Params, device: Device) -> NDArray[np.float32]:
    """Return each pixel's probability of being car in the upright view, (H, W), float32, 0…1."""
    look = partial(probability, net, device=device)
    return find_upright(look, read_photo(pair.photo), params.image_size)


def judge(masks: Mapping[str, Mask], truth: Mask) -> Judged:
    """Score what `predict_masks` found in a photo against the truth, (H, W)."""
    counts = {view: count(masks[view], truth) for view in VIEWS}
    return Judged(
        counts,
        {view: score(counts[view], masks[view], truth) for view in VIEWS},
        {name: iou(count(masks[name], truth)) for name in TURNS},
        lies(truth),
    )


def score(c: Counts, predicted: Mask, truth: Mask) -> Scores:
    """Score a mask (H, W) against the truth, of the same shape, with their counts."""
    return Scores(dice(c), iou(c), boundary_iou(predicted, truth), hd95(predicted, truth))


def lies(truth: Mask) -> bool:
    """Return whether a mask's (H, W) car lies on its side: reaches over more rows than columns.

    Rows and columns within its outermost pixels count, as true masks have no specks, and each photo
    is one or the other; a mask without a car stands.
    """
    box = Image.fromarray(truth).getbbox()  # left, top, right, bottom
    return box is not None and box[3] - box[1] > box[2] - box[0]


def _by_score(photos: Sequence[Judged], view: str) -> dict[str, list[float]]:
    """Return each score of all photos, by its name."""
    return {
        name: [getattr(judged.scores[view], name) for judged in photos] for name in Scores._fields
    }


def _means(photos: Sequence[Judged], view: str) -> dict[str, float]:
    scores = _by_score(photos, view)
    means = summarise([judged.counts[view] for judged in photos])
    means |= {name: float(np.mean(scores[name])) for name in ("boundary_iou", "hd95")}
    return {name: round(value, 6) for name, value in means.items()}


def _columns(net: str, photos: Sequence[Judged]) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {}
    for view in VIEWS:
        for name, values in _by_score(photos, view).items():
            columns[f"{net}_{view}_{name}"] = [round(value, 6) for value in values]
    for name in TURNS:
        columns[f"{net}_{name}_iou"] = [round(judged.turned[name], 6) for judged in photos]
    return columns
