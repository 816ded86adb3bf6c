"""A folder of large photos against the same photos one at a time: seconds a photo, and the ratio.

    python -m benchmarks.folder                     200 photos of 12 megapixels, random weights
    python -m benchmarks.folder --weights exported/model.xml --photos 100

*Folder* is `carseg predict DIR`, which reads and writes in parallel with the network. *One at a
time* is the same model called photo after photo, each read, masked and written before the next.
*Calls* is a `carseg predict FILE` for each photo, which starts Python and loads weights every time;
a few of them are timed. The first two take turns, a fifth of the photos at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from tqdm import tqdm

from carseg import weights
from carseg.batch import predict
from carseg.errors import run
from carseg.files import write_bytes
from carseg.inputs import read
from carseg.model import WORTH_COMPILING, Model, load
from carseg.outputs import Kinds
from carseg.params import load_params
from carseg.u2net import VARIANTS, U2Net

SIZE = (4000, 3000)  # pixels, of a phone's photo
DIFFERENT = 4  # photos that are drawn; the others are copies under other names
TURNS = 5
FEWEST = TURNS * WORTH_COMPILING  # of fewer in a turn, a folder would be computed in another way
CALLS = 3


def main() -> None:
    """Time all three ways and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="trained weights [random ones]"
    )
    parser.add_argument("--model", choices=list(VARIANTS), default="u2net", help="of random ones")
    parser.add_argument(
        "--photos", type=int, default=200, metavar="N", help=f"at least {FEWEST} [200]"
    )
    chosen = parser.parse_args()
    if chosen.photos < FEWEST:
        parser.error(f"--photos {chosen.photos}: {FEWEST} are the fewest")
    size = None if chosen.weights else load_params().image_size  # None: that of the weights
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = write_photos(folder, chosen.photos)
        source = chosen.weights or random_weights(chosen.model, folder)
        seconds = measure(load(source, size), shares, folder)
        single = next(shares[0].iterdir())
        seconds["calls"] = [timed(lambda: call(source, size, single, folder)) for _ in range(CALLS)]
    print(table(seconds))


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write photos as a phone does, coarse shapes under fine noise, in `TURNS` folders."""
    contents = []
    for i in range(DIFFERENT):
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(SIZE, Image.Resampling.BICUBIC), np.int16)
        grain = random.integers(-6, 7, smooth.shape[:2], dtype=np.int16)
        photo = Image.fromarray((smooth + grain[..., None]).clip(0, 255).astype(np.uint8))
        content = io.BytesIO()
        photo.save(content, "JPEG", quality=90)
        contents.append(content.getvalue())
    shares = [folder / f"share{turn}" for turn in range(TURNS)]
    for share in shares:
        share.mkdir()
    for i in range(count):
        (shares[i % TURNS] / f"{i}.jpg").write_bytes(contents[i // TURNS % DIFFERENT])
    return shares


def random_weights(model: str, folder: Path) -> Path:
    """Write weights that were never trained: a look takes as long."""
    path = folder / "random.pth"
    weights.save(U2Net(model), path)
    return path


def measure(model: Model, shares: list[Path], folder: Path) -> dict[str, list[float]]:
    """Give seconds a photo of each share, after one photo that does not count."""
    kinds = Kinds([], model.threshold, None, model.cleanup)
    model.predict(next(shares[0].iterdir()))
    seconds: dict[str, list[float]] = {"one at a time": [], "folder": []}
    for share in tqdm(shares, disable=None):
        photos = sorted(share.iterdir())

        def one_at_a_time(photos: list[Path] = photos) -> None:
            for path in photos:
                photo = read(path.read_bytes(), path)
                ((_, mask),) = kinds.make(photo, model.predict(photo))
                write_bytes(folder / "single" / f"{path.stem}.png", mask)

        def whole_folder(share: Path = share) -> None:
            with contextlib.redirect_stderr(io.StringIO()):
                predict([str(share)], folder / "whole", lambda: model, kinds)

        seconds["one at a time"].append(timed(one_at_a_time) / len(photos))
        seconds["folder"].append(timed(whole_folder) / len(photos))
    return seconds


def call(source: Path, size: int | None, photo: Path, folder: Path) -> None:
    """Predict one photo with a command of its own."""
    words = ["predict", photo, "--weights", source, "--out", folder / "called", "--force"]
    words += [] if size is None else ["--image-size", size]
    subprocess.run(
        [sys.executable, "-m", "carseg", *map(str, words)], check=True, stderr=subprocess.DEVNULL
    )


def timed(function: Callable[[], object]) -> float:
    """Give the seconds that a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def table(seconds: dict[str, list[float]]) -> str:
    """Lay the results out for reading."""
    lines = [f"{'seconds a photo':<18}{'median':>8}{'least':>8}{'most':>8}{'folder is':>14}"]
    turns = list(zip(seconds["one at a time"], seconds["folder"], strict=True))
    times = {
        "one at a time": f"{median(one / many for one, many in turns):.2f} times",
        "calls": f"{median(seconds['calls']) / median(seconds['folder']):.2f} times",
    }
    for name, values in seconds.items():
        figures = "".join(
            f"{figure:>8.3f}" for figure in (median(values), min(values), max(values))
        )
        lines.append(f"{name:<18}{figures}{times.get(name, ''):>14}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
