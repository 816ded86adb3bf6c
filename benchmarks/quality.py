"""Trained weights against a ready-made background remover: one table, on one folder of pairs.

    python -m benchmarks.quality                                  the validation photos
    python -m benchmarks.quality --images DIR --masks DIR         any other pairs

The remover is rembg's way with the official weights, nothing trained: ONNX Runtime on their file,
the photo resized with Lanczos, the map stretched to 0…1, resized back with Lanczos and cut at 0.5.
Photos that the weights were trained on flatter them. The validation photos did not train, but with
`keep: best` they chose the epoch that is kept, which flatters a little.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from carseg.clean import to_mask
from carseg.errors import CarsegError, run
from carseg.evaluate import score
from carseg.metrics import count
from carseg.model import load
from carseg.pairs import find_pairs, read_manifest
from carseg.photos import read_photo, read_truth
from carseg.scores import Scores
from carseg.settings import settings_of

SIZE = 320
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

Mask = NDArray[np.bool_]


class Remover:
    """The official ONNX file as rembg runs it."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, photo: Image.Image, turns: int) -> Mask:
        """Give the mask (H, W) of a photo, averaged over the first `turns` right angles."""
        square = np.asarray(photo.resize((SIZE, SIZE), Image.Resampling.LANCZOS), np.float64)
        pixels = (square / max(square.max(), 1e-6) - MEAN) / STD  # (S, S, 3)
        found = np.mean(
            [np.rot90(self._map(np.rot90(pixels, k)), -k) for k in range(turns)], axis=0
        )
        grey = Image.fromarray((found * 255).astype(np.uint8))
        return np.asarray(grey.resize(photo.size, Image.Resampling.LANCZOS)) >= 128

    def _map(self, pixels: NDArray[np.float64]) -> NDArray[np.float32]:
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None], np.float32)
        found = self._session.run(None, {self._input: batch})[0][0, 0]
        low, high = found.min(), found.max()
        return np.asarray((found - low) / max(high - low, 1e-6), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of photos, with --masks")
    parser.add_argument("--masks", type=Path, help="folder of masks, with --images")
    parser.add_argument("--onnx", type=Path, help="official weights [those in pretrained/]")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path("u2net_segmentation_dice_loss.pth"),
        help="trained weights [%(default)s]",
    )
    arguments = parser.parse_args()
    if (arguments.images is None) != (arguments.masks is None):
        parser.error("--images and --masks go together")
    run(lambda: compare(arguments))


def judged(mask: Mask, truth: Mask) -> Scores:
    """Score a mask (H, W) against the truth."""
    return score(count(mask, truth), mask, truth)


def compare(arguments: argparse.Namespace) -> None:
    """Score both on every pair and print the table."""
    if arguments.images is None:
        pairs = read_manifest(Path("split/val.csv"))
    else:
        pairs = find_pairs(arguments.images, arguments.masks)
    for pair in pairs:
        if read_photo(pair.photo).size != read_truth(pair.mask).shape[::-1]:
            raise CarsegError(f"{pair.mask}: is not as large as {pair.photo}; give both one size")
    official = arguments.onnx or next(Path("pretrained").glob("*.onnx"), Path("pretrained/*.onnx"))
    if not official.is_file():
        raise CarsegError(
            f"{official}: there is no such file; Weights/README.md says where to get it"
            if arguments.onnx
            else f"{official}: there is no such file; run dvc repro weights, or, where "
            "the project's init is another, name a u2net.onnx with --onnx"
        )
    remover = Remover(official)
    torch.backends.cudnn.allow_tf32 = False  # as when scores were computed
    model = load(arguments.weights, precision=settings_of(arguments.weights).precision)

    def cut(found: NDArray[np.float32]) -> Mask:
        return to_mask(found, model.threshold, model.cleanup)

    def ours(d4: bool, closer: bool, photo: Image.Image) -> Mask:
        return cut(model.predict(photo, d4=d4, closer=closer))

    def once(photo: Image.Image) -> Mask:
        return cut(model.look(photo))

    ways: dict[str, Callable[[Image.Image], Mask]] = {
        f"{official.stem} untrained, as rembg": lambda photo: remover(photo, 1),
        "  averaged over 4 rotations": lambda photo: remover(photo, 4),
        "trained here, one look": once,
    }
    for name, d4, closer in (
        ("  upright", False, False),
        ("  looking closer", False, True),
        ("  averaged over D4", True, False),
        ("  averaged over D4, closer", True, True),
    ):
        ways[name] = partial(ours, d4, closer)
    print(f"{f'{len(pairs)} photos':<30}" + "".join(f"{name:>14}" for name in Scores._fields))
    for name, way in ways.items():
        rows = [
            judged(way(read_photo(pair.photo)), read_truth(pair.mask))
            for pair in tqdm(pairs, name, leave=False, disable=None)
        ]
        print(f"{name:<30}" + "".join(f"{mean:>14.4f}" for mean in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
