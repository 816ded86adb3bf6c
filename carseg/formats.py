"""Networks as files that other programs read, each of them run and compared with torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carseg.errors import CarsegError, as_memory_error, import_optional, is_lack_of_memory
from carseg.files import write_bytes
from carseg.fuse import fuse_batch_norm
from carseg.tensors import MEAN, STD
from carseg.u2net import U2Net
from carseg.weights import net_of

TOLERANCE = 1e-3  # of a probability
INT8 = "int8"  # the precision that metadata tell of, where it is not float32
CHECKED = 2  # photos that torch and an exported file must agree on

FILES = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "safetensors": ("model.safetensors",),
}
NETWORKS = {"onnx", "openvino"}  # files that compute by themselves
PACKAGES = {  # that write them, and run them to be compared
    "onnx": ("onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "safetensors": ("safetensors.torch",),
}

# Normalised photos (N, 3, S, S) to probabilities (N, 1, S, S).
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Probability(nn.Module):
    """A net as other programs want it: normalised photos in, probabilities out."""

    def __init__(self, net: U2Net) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)  # what is exported has no gradients to trace

    def forward(self, photo: Tensor) -> Tensor:
        """Return each pixel's probability of being car, (N, 1, H, W), of photos (N, 3, H, W)."""
        return torch.sigmoid(self.net(photo)[:, :1])


def write_onnx(
    net: Probability, folder: Path, size: int, batch: int | None, metadata: Mapping[str, str]
) -> None:
    """Write `model.onnx`: input `photo` (N, 3, S, S), output `probability` (N, 1, S, S).

    Raises:
        CarsegError: a package is missing, or the file computes something else than torch.
        OSError: it cannot be written.
    """
    import_optional("onnxscript", "onnx")
    path = folder / FILES["onnx"][0]
    # Two photos, as an example of one would be taken for the only number there is.
    example = torch.zeros(batch or 2, 3, size, size)
    with warnings.catch_warnings(), quiet("torch.onnx"):
        warnings.simplefilter("ignore")  # torch's exporter calls what torch itself deprecates
        torch.onnx.export(
            net,
            (example,),
            path,
            input_names=["photo"],
            output_names=["probability"],
            dynamic_shapes=None if batch else ({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, dict(metadata))
    for node in [
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
    ]:
        del node.metadata_props[:]  # where in this package's source each of them comes from
    write_bytes(path, model.SerializeToString())
    compare(net, run_onnx(path), size, batch, path.name)


def write_openvino(
    net: Probability, folder: Path, size: int, batch: int | None, metadata: Mapping[str, str]
) -> None:
    """Write `model.xml` and `model.bin`, in float32; the same input and output as in ONNX.

    Batch norm is folded in a way that keeps its precision where OpenVINO computes in bfloat16.

    Raises:
        CarsegError: the package is missing, the file cannot be written, or it computes something
            else than torch.
    """
    openvino = import_optional("openvino", "openvino")
    # Engines that compute in bfloat16 would fold batch norms, too, but lose what must be exact.
    folded = Probability(fuse_batch_norm(net.net))
    shape = openvino.PartialShape([batch or -1, 3, size, size])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, as they are to
        model = openvino.convert_model(
            folded, example_input=torch.zeros(batch or 2, 3, size, size), input=[shape]
        )
    path = folder / FILES["openvino"][0]
    save_openvino(model, path, metadata)
    compare(net, run_openvino(path), size, batch, path.name)


def save_openvino(model: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model of OpenVINO, with metadata and the names that ONNX has.

    Raises:
        CarsegError: the package is missing, or the file cannot be written.
    """
    model.inputs[0].set_names({"photo"})
    model.outputs[0].set_names({"probability"})
    for name, value in metadata.items():
        model.set_rt_info(value, ["carseg", name])
    try:
        import_optional("openvino", "openvino").save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # which does not tell of a full disk as others do
        if is_lack_of_memory(error):
            raise
        why = " ".join(str(error).split())
        raise CarsegError(
            f"{path.name}: could not be written ({why}); make room on the disk"
        ) from error


def write_safetensors(
    net: Probability, folder: Path, size: int, batch: int | None, metadata: Mapping[str, str]
) -> None:
    """Write `model.safetensors`: the state dict, under the key names of the authors' code.

    Raises:
        CarsegError: the package is missing, or what is read back computes something else.
        OSError: the file cannot be written.
    """
    safetensors = import_optional("safetensors.torch", "safetensors")
    path = folder / FILES["safetensors"][0]
    write_bytes(path, safetensors.save(net.net.state_dict(), dict(metadata)))
    loaded = Probability(net_of(safetensors.load_file(path), net.net.variant)).eval()

    def run(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return loaded(torch.from_numpy(photos)).numpy()  # type: ignore[no-any-return]

    compare(net, run, size, batch, path.name)


WRITERS = {"onnx": write_onnx, "openvino": write_openvino, "safetensors": write_safetensors}


def run_onnx(path: Path) -> Run:
    """Open an ONNX file as a function.

    Raises:
        CarsegError: the package is missing.
    """
    runtime = import_optional("onnxruntime", "onnx")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        with as_memory_error():
            return np.asarray(session.run(None, {"photo": photos})[0])

    return run


def run_openvino(path: Path) -> Run:
    """Open an OpenVINO file as a function that leaves float32 as it is.

    Raises:
        CarsegError: the package is missing.
    """
    openvino = import_optional("openvino", "openvino")
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        with as_memory_error():
            return np.asarray(compiled(photos)[0])

    return run


def compare(net: Probability, run: Run, size: int, batch: int | None, name: str) -> None:
    """Run an exported file on noise as bright as photos and compare it with torch.

    Raises:
        CarsegError: a probability differs by more than `TOLERANCE`.
    """
    for count in [batch] if batch else [1, CHECKED]:
        noise = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(count))
        photos = (noise - MEAN) / STD
        with torch.inference_mode():
            expected = net(photos).numpy()
        worst = float(np.abs(run(photos.numpy()) - expected).max())
        if not worst <= TOLERANCE:
            raise CarsegError(
                f"{name}: differs from torch by {worst:.2g}, more than {TOLERANCE}; it was not kept"
            )


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a package's loggers tell of errors alone; torch's exporter has much to say."""
    loggers = [logging.getLogger(n) for n in logging.root.manager.loggerDict if n.startswith(name)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
