"""Exported networks in 8-bit integers, which most processors compute faster than float32.

Post-training static quantization (Krishnamoorthi 2018, arXiv:1806.08342; Jacob et al. 2018,
arXiv:1712.05877): photos calibrate the range of each layer's output, and weights have a scale for
each channel. Where 8 bits are too few, float32 stays: in layers that must be exact
(`U2Net.keep_exact`) and those they read from, and from the features that side outputs read to the
end.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from carseg.errors import CarsegError, import_optional
from carseg.formats import (
    FILES,
    INT8,
    Probability,
    Run,
    run_onnx,
    run_openvino,
    save_openvino,
    write_onnx,
)
from carseg.inputs import read
from carseg.metrics import count, iou
from carseg.pairs import evenly
from carseg.tensors import square_tensor
from carseg.u2net import ConvBNReLU, U2Net

OPERATORS = ("Conv", "Relu", "Concat", "MaxPool", "Resize", "Add")  # in integers
MOST = 32  # photos, as each takes seconds
AGREEMENT = 0.98  # IoU of masks with those of torch, mean over photos, at least
PREPARED = "onnx.quant.pre_process"  # ONNX Runtime warns of files without, but export did the same

Inputs = Sequence[NDArray[np.float32]]  # normalised photos, (1, 3, S, S) each


class Calibration(NamedTuple):
    """What a network is quantized with."""

    calibrating: Inputs  # to find the ranges of numbers with
    held_out: Inputs  # others, to compare masks on
    threshold: float = 0.5  # probability from which a pixel is car

    @classmethod
    def of(cls, photos: Sequence[Path], size: int, threshold: float = 0.5) -> Calibration:
        """Read photos, `MOST` at most from all over, and hold every other one out.

        Args:
            photos: their files.
            size: side of the square that the net sees, in pixels.
            threshold: probability from which a pixel is car.

        Raises:
            CarsegError: a photo cannot be read, or there is but one.
            MemoryError: there is too little memory.
            OSError: a photo may not be read.
        """
        if len(photos) < 2:
            raise CarsegError("--int8: one photo is too few; name ten, or two at least")
        inputs = []
        for path in evenly(photos, MOST):
            photo = read(path.read_bytes(), path)
            inputs.append(square_tensor(photo, size)[None].numpy())
        return cls(inputs[::2], inputs[1::2], threshold)


def write_int8(
    net: Probability,
    folder: Path,
    formats: Sequence[str],
    size: int,
    batch: int | None,
    metadata: Mapping[str, str],
    calibration: Calibration,
) -> float:
    """Write networks in 8-bit integers; always `model.onnx`, from which the others are converted.

    Returns:
        The mean IoU of masks with those of torch, the lowest of all `formats`.

    Raises:
        CarsegError: as `agreement`, `write_onnx` and `save_openvino`.
        OSError: a file cannot be written.
    """
    # Scores are those of the weights.
    metadata = {f"float32_{k}" if k.startswith("metrics") else k: v for k, v in metadata.items()}
    metadata["precision"] = INT8
    path = folder / FILES["onnx"][0]
    write_onnx(net, folder, size, None, metadata)
    quantize(path, net.net, calibration.calibrating)
    found = []
    if "openvino" in formats:
        model = import_optional("openvino", "openvino").convert_model(path)
        if batch:
            model.reshape([batch, 3, size, size])
        xml = folder / FILES["openvino"][0]
        save_openvino(model, xml, metadata)
        found.append(agreement(net, run_openvino(xml), calibration, xml.name, batch or 1))
    if "onnx" in formats:
        if batch:
            _fix_batch(path, batch)
        found.append(agreement(net, run_onnx(path), calibration, path.name, batch or 1))
    return min(found)


def agreement(
    net: Probability, run: Run, calibration: Calibration, name: str, batch: int = 1
) -> float:
    """Return the mean IoU of an exported file's masks with those of torch, where there is a car.

    Args:
        net: what was exported.
        run: the file.
        calibration: its photos that were held out are looked at.
        name: of the file.
        batch: how many photos it takes at once.

    Raises:
        CarsegError: it is less than `AGREEMENT`, or there is no car.
    """
    found = []
    for start in range(0, len(calibration.held_out), batch):
        inputs = calibration.held_out[start : start + batch]
        full = [*inputs, *[inputs[-1]] * (batch - len(inputs))]
        for photo, probability in zip(inputs, run(np.concatenate(full)), strict=False):
            with torch.inference_mode():
                expected = net(torch.from_numpy(photo)).numpy() >= calibration.threshold
            if expected.any():
                found.append(iou(count(probability >= calibration.threshold, expected[0])))
    if not found:
        raise CarsegError("--int8: no car was found in these photos; name photos of cars")
    if mean(found) < AGREEMENT:
        raise CarsegError(
            f"{name}: in 8-bit integers its masks agree with torch's at IoU {mean(found):.3f}, "
            f"less than {AGREEMENT}; it was not kept; try more photos, or leave out --int8"
        )
    return mean(found)


class Reader:
    """Gives photos in the way that ONNX Runtime asks for them, as its `CalibrationDataReader`."""

    def __init__(self, inputs: Inputs) -> None:
        self._rest = iter(inputs)

    def get_next(self) -> Mapping[str, NDArray[np.float32]] | None:
        """Return the next photo, (1, 3, S, S), by the name of the network's input."""
        photo = next(self._rest, None)
        return None if photo is None else {"photo": photo}


def quantize(path: Path, net: U2Net, inputs: Inputs) -> None:
    """Quantize an ONNX file, which holds a network in float32, in place.

    Args:
        path: a file of `write_onnx`.
        net: the network in it.
        inputs: photos to calibrate ranges on.

    Raises:
        CarsegError: a package is missing.
    """
    quantization = import_optional("onnxruntime.quantization", "--int8")
    model = onnx.load(str(path))
    told = [*model.metadata_props]
    model.metadata_props.add(key=PREPARED, value="onnxruntime.quant")
    quantization.quantize_static(
        model,
        path,
        Reader(inputs),
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        # 7 bits: without VNNI processors add products in pairs, and two of 8 bits do not fit.
        reduce_range=True,
        op_types_to_quantize=OPERATORS,
        nodes_to_exclude=_in_float32(model.graph, net),
    )
    model = onnx.load(str(path))
    del model.metadata_props[:]
    model.metadata_props.extend(told)
    onnx.save(model, str(path))


def _fix_batch(path: Path, batch: int) -> None:
    """Let an ONNX file take so many photos at once, and no other number."""
    tools = import_optional("onnxruntime.tools.onnx_model_utils", "--int8")
    model = onnx.load(str(path))
    (number,) = {
        value.type.tensor_type.shape.dim[0].dim_param
        for value in (*model.graph.input, *model.graph.output)
    }
    tools.make_dim_param_fixed(model.graph, number, batch)
    onnx.save(model, str(path))


def _in_float32(graph: Any, net: U2Net) -> list[str]:
    """Name the nodes of an ONNX graph that are to stay in float32."""
    exact = {f"net.{name}.conv_s1.weight" for name in exact_layers(net)}
    sides = {f"net.side{i}.weight" for i in range(1, net.depth + 1)}
    makers = {name: node for node in graph.node for name in node.output}
    kept = []
    given: set[str] = set()  # what the sides give, and all that is made of it
    for node in graph.node:  # in the order in which they run
        if not given.isdisjoint(node.input):
            given.update(node.output)
            kept.append(node)
        elif not exact.union(sides).isdisjoint(node.input):
            kept += [node, *filter(None, [makers.get(node.input[0])])]  # the photo has no maker
            if not sides.isdisjoint(node.input):
                given.update(node.output)
    return [node.name for node in kept]


def exact_layers(net: U2Net) -> Iterator[str]:
    """Name the layers that must be exact, or give to those that must be."""
    net = copy.deepcopy(net)
    net.keep_exact()
    for name, layer in net.named_modules():
        if isinstance(layer, ConvBNReLU) and (layer.exact or layer.exact_output):
            yield name
