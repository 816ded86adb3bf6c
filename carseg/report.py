"""`report.html`: how good the model is, to look at; one file that opens offline."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from carseg import __version__
from carseg.curve import kept_epoch
from carseg.files import write_bytes
from carseg.overlay import FALSE_NEGATIVE, FALSE_POSITIVE, LONG_SIDE, TRUE_POSITIVE
from carseg.pairs import Pair, evenly
from carseg.params import Params
from carseg.photos import read_photo, read_truth
from carseg.spread import Spread

TEMPLATE = Path(__file__).with_suffix(".html.j2")
SHOWN = 50  # photos, the worst ones, so that a page of thousands still opens
LOOKED_AT = 500  # photos that the data are described by, at most
WIDTH, HEIGHT = 640, 260  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 12, 40

Rows = Sequence[Mapping[str, str]]  # of plots/TASK.csv


class Shown(NamedTuple):
    """A validation photo with what there is to see of it, as data URIs."""

    name: str
    iou: float
    untrained: float
    photo: str
    truth: str
    prediction: str
    probability: str


class Line(NamedTuple):
    """A curve on a chart."""

    name: str
    points: str  # of an SVG polyline
    last: tuple[float, float]


class Chart(NamedTuple):
    """IoU by epoch, of training and validation, laid out."""

    task: str
    lines: list[Line]
    ticks: list[tuple[float, str]]  # of IoU: y, label
    epochs: list[tuple[float, str]]  # x, label
    kept_at: float
    kept: int
    gap: float  # IoU of training less that of validation, where kept
    rows: Rows


class Data(NamedTuple):
    """What the photos are like."""

    photos: int
    looked_at: int
    sizes: list[tuple[str, int]]  # the most frequent ones
    landscape: int
    portrait: int
    share: tuple[float, float, float]  # of car: least, median, most
    digest: str


def write_report(
    path: Path,
    *,
    scores: Mapping[str, Mapping[str, Mapping[str, Spread]]],
    curves: Mapping[str, Rows],
    shown: Sequence[Shown],
    pairs: Mapping[str, Sequence[Pair]],
    params: Params,
    machine: Mapping[str, object],
) -> None:
    """Write the page.

    Args:
        path: the file.
        scores: net → view → score.
        curves: task → rows of its curve.
        shown: validation photos, worst first.
        pairs: training and validation, by the names train and val.
        params: of the run.
        machine: as `carseg.provenance` tells it.

    Raises:
        CarsegError: a photo or mask cannot be read.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=__version__,
        scores=scores,
        charts=[chart(task, rows, params.keep) for task, rows in curves.items()],
        shown=shown,
        legend={
            "car, found": TRUE_POSITIVE,
            "background, taken for car": FALSE_POSITIVE,
            "car, missed": FALSE_NEGATIVE,
        },
        data=describe([*pairs["train"], *pairs["val"]]),
        counts={part: len(listed) for part, listed in pairs.items()},
        params=params.model_dump(exclude={"workers", "launcher"}),  # `machine` tells the rest
        machine=machine,
        width=WIDTH,
        height=HEIGHT,
        frame=(LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM),
    )
    write_bytes(path, page.encode())


def show(
    pair: Pair,
    overlay: bytes,
    probability: NDArray[np.float32],
    iou: float,
    untrained: float,
) -> Shown:
    """Gather what there is to see of a photo.

    Args:
        pair: the photo and its mask.
        overlay: the prediction drawn over the photo, JPEG.
        probability: (H, W), 0…1.
        iou: of the prediction.
        untrained: IoU of the untrained net.

    Raises:
        CarsegError: the photo or mask cannot be read.
    """
    levels = Image.fromarray((probability * 255).round().astype(np.uint8))
    truth = Image.fromarray(read_truth(pair.mask)).convert("L")
    return Shown(
        pair.name,
        iou,
        untrained,
        photo=data_uri(read_photo(pair.photo)),
        truth=data_uri(truth),
        prediction=data_uri(overlay),
        probability=data_uri(levels),
    )


def data_uri(picture: Image.Image | bytes) -> str:
    """Return a picture, scaled down to `LONG_SIDE`, or a JPEG file as a page embeds it."""
    if isinstance(picture, Image.Image):
        small = picture.copy()
        small.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.BOX)
        small.info = {}  # a comment would be saved
        content = io.BytesIO()
        small.save(content, "JPEG", quality=82)
        picture = content.getvalue()
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()


def chart(task: str, rows: Rows, keep: str) -> Chart:
    """Lay out the IoU curves of a task."""
    values = {name: [float(row[f"{name}_iou"]) for row in rows] for name in ("train", "val")}
    kept = kept_epoch(values["val"], keep)
    least = min(min(v) for v in values.values())
    bottom = min(0.95, math.floor(least * 20) / 20)

    def x(epoch: float) -> float:
        return round(LEFT + epoch / max(1, len(rows) - 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(iou: float) -> float:
        return round(TOP + (1 - iou) / (1 - bottom) * (HEIGHT - TOP - BOTTOM), 1)

    steps = np.linspace(bottom, 1, 6)
    stride = max(1, -(-(len(rows) - 1) // 10))
    return Chart(
        task,
        [
            Line(
                name,
                " ".join(f"{x(i)},{y(v)}" for i, v in enumerate(ious)),
                (x(len(rows) - 1), y(ious[-1])),
            )
            for name, ious in values.items()
        ],
        ticks=[(y(float(step)), f"{step:.2f}") for step in steps],
        epochs=[(x(i), str(i)) for i in range(0, len(rows), stride)],
        kept_at=x(kept),
        kept=kept,
        gap=values["train"][kept] - values["val"][kept],
        rows=rows,
    )


def describe(pairs: Sequence[Pair]) -> Data:
    """Describe the photos by at most `LOOKED_AT` of them, evenly picked; the digest is of all.

    Raises:
        CarsegError: a mask is no image, or broken.
        OSError: a photo or mask cannot be read.
    """
    digest = hashlib.sha256()
    for pair in sorted(pairs):  # the same data have the same digest, however they are split
        digest.update(pair.digest())
    picked = evenly(pairs, LOOKED_AT)
    shapes, shares = zip(*(_shape_and_share(pair) for pair in picked), strict=True)
    sizes = Counter(f"{width}×{height}" for height, width in shapes)
    landscape = sum(width >= height for height, width in shapes)
    return Data(
        photos=len(pairs),
        looked_at=len(picked),
        sizes=sizes.most_common(5),
        landscape=landscape,
        portrait=len(picked) - landscape,
        share=(min(shares), float(np.median(shares)), max(shares)),
        digest=digest.hexdigest(),
    )


def _shape_and_share(pair: Pair) -> tuple[tuple[int, ...], float]:
    """Return how large a mask is, (H, W), and which share of it is car; masks are not kept."""
    truth = read_truth(pair.mask)
    return truth.shape, float(truth.mean())
