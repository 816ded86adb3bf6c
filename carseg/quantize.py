"""Exported networks in 8-bit integers, a quarter of the size and faster on most processors.

Static quantization (Jacob et al. 2018, arXiv:1712.05877): photos tell the range of the numbers that
each layer gives, and weights have a scale for each channel (Krishnamoorthi 2018, arXiv:1806.08342).
What 8 bits are too few for stays in float32: layers that must be exact (`U2Net.keep_exact`), and
all from the features that side outputs read to the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from carseg.errors import CarsegError, needed
from carseg.formats import (
    FILES,
    Probability,
    Run,
    quiet,
    run_onnx,
    run_openvino,
    save_openvino,
    write_onnx,
)
from carseg.metrics import count, iou
from carseg.photos import read_photo, squared_photo
from carseg.tensors import photo_tensor
from carseg.u2net import ConvBNReLU, U2Net

OPERATORS = ("Conv", "Relu", "Concat", "MaxPool", "Resize", "Add")  # in integers
MOST = 32  # photos, as each takes seconds
AGREEMENT = 0.98  # IoU of masks with those of torch, mean over photos, at least

Looks = Sequence[NDArray[np.float32]]  # normalised photos, (N, 3, S, S) each


class Samples(NamedTuple):
    """Photos to quantize a network with."""

    ranges: Looks  # to find the ranges of numbers with
    checked: Looks  # others, to compare masks on

    @classmethod
    def of(cls, photos: Sequence[Path], size: int, batch: int | None) -> Samples:
        """Read photos, every other one to compare masks on, and at most `MOST` of them.

        Args:
            photos: their files.
            size: S, in pixels.
            batch: N, how often each photo is in a look; None: once.

        Raises:
            CarsegError: a photo cannot be read, or there is but one.
        """
        if len(photos) < 2:
            raise CarsegError("--int8: one photo is too few; name ten, or two at least")
        looks = [
            photo_tensor(squared_photo(read_photo(path), size)).repeat(batch or 1, 1, 1, 1).numpy()
            for path in photos[:: math.ceil(len(photos) / MOST)]
        ]
        return cls(looks[::2], looks[1::2])


def write_int8(
    net: Probability,
    folder: Path,
    formats: Sequence[str],
    size: int,
    batch: int | None,
    metadata: Mapping[str, str],
    samples: Samples,
) -> float:
    """Write networks that compute in 8-bit integers, in those of `formats` that hold networks.

    Returns:
        The mean IoU of their masks with those of torch.

    Raises:
        CarsegError: masks agree less than `AGREEMENT`, or a file cannot be written.
    """
    metadata = {**metadata, "precision": "int8"}
    write_onnx(net, folder, size, batch, metadata)
    path = folder / FILES["onnx"][0]
    with quiet(""):  # it recommends passes over the file that change nothing in it
        quantize(path, path, net.net, samples.ranges)
    found = [agreement(net, run_onnx(path), samples.checked, path.name)]
    if "openvino" in formats:
        model = needed("openvino", "openvino").convert_model(path)
        path = folder / FILES["openvino"][0]
        save_openvino(model, path, metadata)
        found.append(agreement(net, run_openvino(path), samples.checked, path.name))
    return min(found)


def agreement(net: Probability, run: Run, looks: Looks, name: str) -> float:
    """Give the mean IoU of an exported file's masks with those of torch.

    Raises:
        CarsegError: it is less than `AGREEMENT`.
    """
    found = []
    for look in looks:
        with torch.inference_mode():
            expected = net(torch.from_numpy(look)).numpy() >= 0.5
        found.append(iou(count(run(look) >= 0.5, expected)))
    if mean(found) < AGREEMENT:
        raise CarsegError(
            f"{name}: in 8-bit integers its masks agree with torch's at IoU {mean(found):.3f}, "
            f"less than {AGREEMENT}; it was not kept; try more photos, or leave out --int8"
        )
    return mean(found)


def quantize(source: Path, target: Path, net: U2Net, looks: Looks) -> None:
    """Write an exported network in 8-bit integers, with its metadata.

    Args:
        source: an ONNX file that `carseg export` wrote in float32.
        target: the ONNX file to write.
        net: what was exported.
        looks: what to find the ranges with.

    Raises:
        CarsegError: a package is missing.
    """
    onnx = needed("onnx", "--int8")
    quantization = needed("onnxruntime.quantization", "--int8")
    model = onnx.load(str(source))
    quantization.quantize_static(
        model,
        target,
        _reader(quantization, looks),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        # 7 bits: without VNNI processors add products in pairs, and two of 8 bits do not fit.
        reduce_range=True,
        op_types_to_quantize=OPERATORS,
        nodes_to_exclude=_in_float32(model.graph, net),
    )


def _reader(quantization: Any, looks: Looks) -> Any:
    """Give looks in the way that ONNX Runtime asks for them."""

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(looks)

        def get_next(self) -> Mapping[str, NDArray[np.float32]] | None:
            look = next(self.rest, None)
            return None if look is None else {"photo": look}

    return Reader()


def _in_float32(graph: Any, net: U2Net) -> list[str]:
    """Name the nodes of an ONNX graph that are to stay in float32."""
    exact = {f"net.{name}.conv_s1.weight" for name in exact_layers(net)}
    sides = {f"net.side{i}.weight" for i in range(1, net.depth + 1)}
    kept = [node for node in graph.node if exact.intersection(node.input)]
    given: set[str] = set()  # what the sides give, and all that is made of it
    for node in graph.node:  # in the order in which they run
        if sides.intersection(node.input):
            kept += [maker for maker in graph.node if node.input[0] in maker.output]
        elif not given.intersection(node.input):
            continue
        given.update(node.output)
        kept.append(node)
    return [node.name for node in kept]


def exact_layers(net: U2Net) -> Iterator[str]:
    """Name the layers that bfloat16 is too coarse for, or 8 bits."""
    net.keep_exact()
    for name, layer in net.named_modules():
        if isinstance(layer, ConvBNReLU) and (layer.exact or layer.large):
            yield name
