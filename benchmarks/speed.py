"""Training step and prediction, timed against common alternatives and the processor's peak.

    python -m benchmarks.speed                    the full net, 320×320, batches of 4
    python -m benchmarks.speed --model u2netp     the small net
    python -m benchmarks.speed --weights FILE --images DIR     trained; the masks are compared, too
    ... --int8 DIR2                               and our prediction in 8-bit integers is timed
    python -m benchmarks.speed --trained          all of that, with what dvc repro trained

Ours and theirs take turns in one run, so that other load on the machine affects both; read the
ratios, not the seconds. *Theirs* is, for training, a plain loop: float32, photos decoded and
resized for every sample, the same network of torch's own layers, batch and optimiser; for
prediction, ONNX Runtime in float32 on the exported network, photos resized with Lanczos as rembg
does. Theirs runs in its own process, as carseg changes how its process allocates memory. The peak
is that of a matrix product, which convolutions consist of, in the number format of training; the
share of it counts the products of plain convolutions, even where ours need fewer. Results are also
written to `bench.json`.

Our prediction is that of `carseg export --format openvino` where OpenVINO is installed and the
processor has AVX-512, else torch; *carseg, 8 bits* is that of `carseg export --int8`, calibrated on
other photos than `--images`: with `--trained` on those trained on, and the others are predicted.
With trained weights, *agreement* is the IoU of our masks with those of ONNX Runtime.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple, ParamSpec, TypeVar
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from carseg import u2net, weights
from carseg.columns import TRAINED
from carseg.convolution import Conv3x3
from carseg.data import Samples
from carseg.device import Device
from carseg.errors import CarsegError, import_optional, run, warn
from carseg.files import write_json
from carseg.formats import Probability, write_onnx, write_openvino
from carseg.inputs import list_photos
from carseg.learner import Learner
from carseg.losses import BCEWithLogitsLoss
from carseg.metrics import count, iou
from carseg.model import load
from carseg.pairs import Pair, read_manifest
from carseg.photos import read_photo
from carseg.processes import ALONE
from carseg.provenance import provenance
from carseg.quantize import Calibration, write_int8
from carseg.settings import SIZES, settings_of
from carseg.squares import Squares
from carseg.tensors import mask_tensor, photo_tensor
from carseg.u2net import VARIANTS, U2Net

SIDE = 2048  # of the matrices whose product gives the peak
PRODUCTS = 20  # in a row
STEPS = 10**6  # that the learning rate's schedule is for
PHOTO = (1200, 900)  # pixels of the photos that are timed

ENGINES = ("onnxruntime", "openvino")

# As the table names them.
OURS, INTEGERS, THEIRS = "carseg", "carseg, 8 bits", "ONNX Runtime"

Timed = Mapping[str, Callable[[], object]]
Mask = NDArray[np.bool_]
Find = Callable[[Path], Mask]  # a photo's mask, (H, W)
P = ParamSpec("P")
R = TypeVar("R")


def main() -> None:
    bench(None)


def bench(arguments: Sequence[str] | None) -> dict[str, object]:
    """Time everything, print the table, write `bench.json`, and give its content."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=list(VARIANTS), default="u2net", help="of random ones")
    parser.add_argument(
        "--image-size", type=int, help="of the network's input [that of the weights, else 320]"
    )
    parser.add_argument("--batch", type=int, default=4, help="photos in a training step [4]")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="trained weights [random ones]"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="photos [one of noise]")
    parser.add_argument("--int8", metavar="DIR", help="photos to calibrate with [no integers]")
    parser.add_argument("--trained", action="store_true", help="weights and photos of dvc repro")
    parser.add_argument("--rounds", type=int, default=7, help="times that each is timed [7]")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="results [bench.json]")
    chosen = parser.parse_args(arguments)
    if chosen.trained and (chosen.weights or chosen.images or chosen.int8):
        parser.error("--trained names the weights and the photos itself")
    if not chosen.trained and not chosen.weights and (chosen.images or chosen.int8):
        parser.error("--images and --int8 want --weights: masks of random ones tell nothing")
    if min(chosen.batch, chosen.rounds) < 1:
        parser.error("--batch and --rounds: 1 is the least")
    if chosen.image_size not in (None, *SIZES):
        parser.error(f"--image-size {chosen.image_size}: {SIZES[0]} to {SIZES[-1]} are possible")
    with tempfile.TemporaryDirectory() as name:
        folder, device = Path(name), Device(name="cpu")  # as the plain loop and ONNX Runtime
        pairs = write_photos(folder, chosen.batch)
        net, size, photos, calibration = read_inputs(chosen)
        seconds: dict[str, Mapping[str, list[float]]] = {"product": products(device)}
        seconds["training"] = time_training(net.variant, pairs, size, chosen.rounds, folder, device)
        seconds["prediction"], found = time_prediction(
            net, size, photos or [pairs[0].photo], calibration, chosen.rounds, folder
        )
    result = summary(seconds, flops_of(net.variant, size, chosen.batch))
    if photos:
        result["agreement"] = found
    result["machine"] = provenance(device)
    result["timed"] = {
        "model": net.variant,
        "image_size": size,
        "batch_size": chosen.batch,
        "rounds": chosen.rounds,
        "engines": {name: import_module(name).__version__ for name in ENGINES if find_spec(name)},
    }
    print(table(seconds, result))
    write_json(chosen.out, result)
    return result


class Inputs(NamedTuple):
    """What is timed, and on what."""

    net: U2Net
    size: int  # side of its square input, in pixels
    photos: Sequence[Path]  # to compare masks on; none where weights are random
    calibration: Calibration | None  # of integers


def read_inputs(chosen: argparse.Namespace) -> Inputs:
    """Read what the options name, before anything is timed."""
    photos: list[Path] = []
    calibrating: list[Path] = []
    if chosen.trained:
        chosen.weights = Path(TRAINED["dice"])
        photos, calibrating = (
            [pair.photo for pair in read_manifest(Path(f"split/{part}.csv"))]
            for part in ("val", "train")
        )
    if chosen.images:
        photos = [path for path, _ in list_photos([str(chosen.images)], False)]
    if chosen.int8:
        calibrating = [path for path, _ in list_photos([chosen.int8], True)]
    if alike := {path.resolve() for path in photos} & {path.resolve() for path in calibrating}:
        raise CarsegError(
            f"--int8: {min(alike)} is among --images, too, and masks of photos that ranges were "
            "measured on tell too little; name another folder"
        )
    if not chosen.weights:
        return Inputs(U2Net(chosen.model), chosen.image_size or 320, [], None)
    net = weights.read(chosen.weights)
    net.keep_exact()
    size = chosen.image_size or settings_of(chosen.weights).image_size
    calibration = None
    if chosen.int8:
        import_optional("openvino", "--int8")
    if chosen.int8 or (len(calibrating) > 1 and find_spec("openvino")):
        calibration = Calibration.of(calibrating, size)
    return Inputs(net, size, photos, calibration)


def time_training(
    model: str, pairs: Sequence[Pair], size: int, rounds: int, folder: Path, device: Device
) -> dict[str, list[float]]:
    """Give seconds of training steps, ours and the plain loop's."""
    ours = our_loop(model, pairs, size, folder, device)
    with apart(plain_loop, model, pairs, size) as plain:
        return alternate({OURS: ours, "plain": plain}, rounds)


def time_prediction(
    net: U2Net,
    size: int,
    photos: Sequence[Path],
    calibration: Calibration | None,
    rounds: int,
    folder: Path,
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """Give seconds from file to mask by each way, and the IoU of our masks with theirs."""
    makes = {OURS: partial(our_prediction, write_ours(net, size, folder / "ours"), size)}
    if calibration:
        try:
            file = write_integers(net, size, folder / "int8", calibration)
            makes[INTEGERS] = partial(our_prediction, file, size)
        except CarsegError as error:  # masks are no longer the same; the rest is worth timing
            warn(f"no 8-bit integers are timed: {error}")
    makes[THEIRS] = partial(onnx_runtime, write_onnx_file(net, size, folder), size)
    with ExitStack() as children:
        ways = {way: children.enter_context(apart(make)) for way, make in makes.items()}
        timed = {way: partial(find_car, photos[0]) for way, find_car in ways.items()}
        seconds = alternate(timed, rounds)
        alike: dict[str, list[float]] = {way: [] for way in ways if way != THEIRS}
        for photo in photos:
            theirs = ways[THEIRS](photo)
            for way, found in alike.items():
                found.append(iou(count(ways[way](photo), theirs)))
    return seconds, {
        way: {"mean": mean(values), "least": min(values)} for way, values in alike.items()
    }


def write_photos(folder: Path, count: int) -> list[Pair]:
    """Write photos of noise, coarse as photos are, with masks."""
    pairs = []
    for i in range(count):
        random = np.random.default_rng(i)
        pair = Pair(f"{folder}/{i}.jpg", f"{folder}/{i}.png")
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize(PHOTO, Image.Resampling.BICUBIC).save(pair.photo, quality=90)
        mask = Image.new("L", PHOTO)
        mask.paste(255, (300, 300, 900, 700))
        mask.save(pair.mask)
        pairs.append(pair)
    return pairs


def products(device: Device) -> dict[str, list[float]]:
    """Time matrix products, many in a row, as the first ones take more than twice as long.

    Where bfloat16 is not what the device computes in, one of them could take a minute.
    """
    a, b = (torch.randn(SIDE, SIDE) for _ in range(2))
    seconds = alternate({"float32": lambda: a @ b}, PRODUCTS)
    if device.dtype == torch.bfloat16:
        c, d = a.bfloat16(), b.bfloat16()
        seconds |= alternate({"bfloat16": lambda: c @ d}, PRODUCTS)
    return seconds


def flops_of(model: str, size: int, batch: int) -> int:
    """Count additions and products of a training step with plain convolutions."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        U2Net(model)(torch.empty(batch, 3, size, size)).sum().backward()
    total: int = counter.get_total_flops()
    return total


def our_loop(
    model: str, pairs: Sequence[Pair], size: int, folder: Path, device: Device
) -> Callable[[], None]:
    """Give a training step in our way: from files, prepared once, to changed weights."""
    samples = Samples(Squares(pairs, size, folder))
    learner = Learner(U2Net(model), BCEWithLogitsLoss(), 1e-4, STEPS, device, ALONE)
    epochs = iter(range(STEPS))

    def step() -> None:
        epoch = next(epochs)
        photos, masks = zip(*(samples[epoch, i] for i in range(len(pairs))), strict=True)
        learner.step(torch.stack(photos), torch.stack(masks), 1.0)

    return step


def plain_loop(model: str, pairs: Sequence[Pair], size: int) -> Callable[[], None]:
    """Give a training step in the plain way: from files to changed weights."""
    criterion = BCEWithLogitsLoss()
    net = U2Net(model).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)

    def step() -> None:
        photos, masks = zip(*(plain_item(pair, size) for pair in pairs), strict=True)
        with plain_layers():
            loss: Tensor = criterion(net(torch.stack(photos)), torch.stack(masks))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return step


@contextmanager
def plain_layers() -> Iterator[None]:
    """Let U²-Net be made of torch's own layers, which keep all that their gradients need."""
    pool = partial(F.max_pool2d, kernel_size=2, ceil_mode=True)
    with (
        patch.multiple(u2net, halve=pool, keep_apart=lambda *_: nullcontext(), resize=resize),
        patch.object(Conv3x3, "forward", nn.Conv2d.forward),
    ):
        yield


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of (N, C, h, w) to (N, C, *size), with torch's own gradient."""
    if x.shape[-2:] == tuple(size):  # as the authors' code, which joins such features as they are
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def plain_item(pair: Pair, size: int) -> tuple[Tensor, Tensor]:
    """Decode and resize a pair, as a first loop does for every sample."""
    with Image.open(pair.photo) as photo, Image.open(pair.mask) as mask:
        small = photo.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
        shape = mask.convert("L").resize((size, size), Image.Resampling.NEAREST)
    return photo_tensor(np.asarray(small)), mask_tensor(np.asarray(shape))


def write_ours(net: U2Net, size: int, folder: Path) -> Path:
    """Write the network in the way that is the fastest with the same masks."""
    folder.mkdir()
    # Without AVX-512 torch is faster, as it computes many convolutions in tiles.
    if find_spec("openvino") and torch.backends.cpu.get_cpu_capability() == "AVX512":
        write_openvino(Probability(net.eval()), folder, size, None, {"image_size": str(size)})
        return folder / "model.xml"
    weights.save(net, folder / "net.pth")
    return folder / "net.pth"


def write_integers(net: U2Net, size: int, folder: Path, calibration: Calibration) -> Path:
    """Write the network in 8-bit integers for OpenVINO."""
    folder.mkdir()
    both, metadata = ["onnx", "openvino"], {"image_size": str(size)}
    write_int8(Probability(net.eval()), folder, both, size, None, metadata, calibration)
    return folder / "model.xml"


def our_prediction(file: Path, size: int) -> Find:
    """Return a function that finds a photo's mask with carseg, in one forward pass as theirs."""
    model = load(file, size, device="cpu")
    return lambda path: model.look(path) >= 0.5


def write_onnx_file(net: U2Net, size: int, folder: Path) -> Path:
    """Write the network for ONNX Runtime."""
    write_onnx(Probability(net.eval()), folder, size, None, {})
    return folder / "model.onnx"


def onnx_runtime(model: Path, size: int) -> Find:
    """Give what finds the mask of a photo the way rembg does."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def find(path: Path) -> Mask:
        photo = read_photo(path)
        square = photo.resize((size, size), Image.Resampling.LANCZOS)
        found = session.run(None, {"photo": photo_tensor(np.asarray(square))[None].numpy()})[0]
        grey = Image.fromarray((found[0, 0] * 255).astype(np.uint8))
        return np.asarray(grey.resize(photo.size, Image.Resampling.LANCZOS)) >= 128

    return find


@contextmanager
def apart(
    make: Callable[P, Callable[..., R]], *args: P.args, **kwargs: P.kwargs
) -> Iterator[Callable[..., R]]:
    """Call what `make` gives in a process of its own, which ends with the context."""
    # Forked, it would start with our settings of memory and threads.
    spawn = multiprocessing.get_context("spawn")
    once = partial(make, *args, **kwargs)
    with ProcessPoolExecutor(1, spawn) as pool:
        pool.submit(_start, once).result()  # no initializer, whose errors would be lost
        yield lambda *words: pool.submit(_call, *words).result()


_made: Callable[..., Any]  # in the child alone: what is made there cannot be pickled


def _start(make: Callable[[], Callable[..., Any]]) -> None:
    global _made
    _made = make()


def _call(*words: object) -> Any:
    return _made(*words)


def alternate(timed: Timed, rounds: int) -> dict[str, list[float]]:
    """Time each function `rounds` times, by turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for at in range(rounds + 1):
        for name, function in timed.items():
            began = time.perf_counter()
            function()
            if at:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def summary(seconds: Mapping[str, Mapping[str, list[float]]], flops: int) -> dict[str, object]:
    """Give medians, spreads, ratios and shares of the peak."""
    peak = {name: 2 * SIDE**3 / min(times) for name, times in seconds["product"].items()}
    reached = {name: flops / median(times) for name, times in seconds["training"].items()}
    prediction = seconds["prediction"]
    found: dict[str, object] = {
        "seconds": {
            task: {
                name: {"median": median(times), "least": min(times), "most": max(times)}
                for name, times in ways.items()
            }
            for task, ways in seconds.items()
        },
        "peak_gflops": {name: value / 1e9 for name, value in peak.items()},
        "training_gflops": {name: value / 1e9 for name, value in reached.items()},
        "training_share_of_peak": reached[OURS] / max(peak.values()),
        "training_speed_up": ratio(seconds["training"][OURS], seconds["training"]["plain"]),
        "prediction_speed_up": ratio(prediction[OURS], prediction[THEIRS]),
    }
    if INTEGERS in prediction:
        found["int8_speed_up"] = ratio(prediction[INTEGERS], prediction[THEIRS])
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Give how many times as fast ours is: the median of the ratios, turn by turn."""
    return median(b / a for a, b in zip(ours, theirs, strict=True))


def table(seconds: Mapping[str, Mapping[str, list[float]]], result: Mapping[str, Any]) -> str:
    """Lay the results out for reading."""
    lines = [f"{'':<28}{'median, s':>12}{'least':>10}{'most':>10}"]
    for task, ways in seconds.items():
        for name, times in ways.items():
            figures = f"{median(times):>12.3f}{min(times):>10.3f}{max(times):>10.3f}"
            lines.append(f"{f'{task}, {name}':<28}{figures}")
    for name, value in result.items():
        if isinstance(value, float):
            lines.append(f"{name.replace('_', ' ')}: {value:.2f}")
    for way, found in result.get("agreement", {}).items():
        lines.append(f"agreement, {way}: {found['mean']:.4f}, {found['least']:.4f} at worst")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
