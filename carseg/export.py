"""`carseg export`: trained weights as files that other programs read, checked against torch."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from carseg import weights
from carseg.card import Card, card
from carseg.errors import CarsegError, needed
from carseg.files import write_bytes
from carseg.fold import fold
from carseg.tensors import MEAN, STD
from carseg.u2net import U2Net

TOLERANCE = 1e-3  # of a probability
CHECKED = 2  # photos that torch and an exported file must agree on

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Probability(nn.Module):
    """A net as other programs want it: normalised photos in, probabilities out."""

    def __init__(self, net: U2Net) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)  # what is exported has no gradients to trace

    def forward(self, photo: Tensor) -> Tensor:
        """Give each pixel's probability of being car, (N, 1, H, W), of photos (N, 3, H, W)."""
        return torch.sigmoid(self.net(photo)[:, :1])


def export(
    source: Path, out: Path, formats: Sequence[str], size: int, batch: int | None, force: bool
) -> list[Path]:
    """Write the weights in all `formats`, with a model card; every file is checked first.

    Args:
        source: a .pth file of a training.
        out: the folder to write to; what is in it besides stays.
        formats: keys of `WRITERS`.
        size: side of the square that the net sees, in pixels.
        batch: photos at once, None: any number.
        force: replace files that exist.

    Returns:
        The files written.

    Raises:
        CarsegError: the weights cannot be read, a package is missing, a file exists, or what
            was exported does not compute what torch does.
    """
    formats = list(dict.fromkeys(formats))
    state = weights.read_checkpoint(source)
    variant = weights.variant_of(state, source)
    names = [name for format in formats for name in FILES[format]] + ["MODEL_CARD.md"]
    if not force and (there := [out / name for name in names if (out / name).exists()]):
        raise CarsegError(
            "\n".join(f"{path}: exists already; add --force to replace it" for path in there)
        )
    net = U2Net(variant)
    net.load_state_dict(state)
    about = Card.of(source, variant, size)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as folder:
        fresh = Path(folder)
        for format in formats:
            WRITERS[format](Probability(net).eval(), fresh, size, batch, about.metadata())
        write_bytes(fresh / "MODEL_CARD.md", card(about, names[:-1], batch).encode())
        for name in names:
            os.replace(fresh / name, out / name)
    return [out / name for name in names]


def write_onnx(
    net: Probability, folder: Path, size: int, batch: int | None, metadata: Mapping[str, str]
) -> None:
    """Write `model.onnx`: input `photo` (N, 3, S, S), output `probability` (N, 1, S, S)."""
    needed("onnxscript", "onnx")
    onnx, runtime = needed("onnx", "onnx"), needed("onnxruntime", "onnx")
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
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compare(net, lambda photos: session.run(None, {"photo": photos})[0], size, batch, path.name)


def write_openvino(
    net: Probability, folder: Path, size: int, batch: int | None, metadata: Mapping[str, str]
) -> None:
    """Write `model.xml` and `model.bin`, in float32; the same input and output as in ONNX.

    Batch norm is folded in a way that keeps its precision where OpenVINO computes in bfloat16.

    Raises:
        CarsegError: the file cannot be written.
    """
    openvino = needed("openvino", "openvino")
    # Engines that compute in bfloat16 would fold batch norms, too, but lose what must be exact.
    folded = Probability(fold(net.net))
    shape = openvino.PartialShape([batch or -1, 3, size, size])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes become constants, as they are to
        model = openvino.convert_model(
            folded, example_input=torch.zeros(batch or 2, 3, size, size), input=[shape]
        )
    model.inputs[0].set_names({"photo"})
    model.outputs[0].set_names({"probability"})
    for name, value in metadata.items():
        model.set_rt_info(value, ["carseg", name])
    path = folder / FILES["openvino"][0]
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # which does not tell of a full disk as others do
        why = " ".join(str(error).split())
        raise CarsegError(
            f"{path.name}: could not be written ({why}); make room on the disk"
        ) from error
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    compare(net, lambda photos: np.asarray(compiled(photos)[0]), size, batch, path.name)


def write_safetensors(
    net: Probability, folder: Path, size: int, batch: int | None, metadata: Mapping[str, str]
) -> None:
    """Write `model.safetensors`: the state dict, under the key names of the authors' code."""
    safetensors = needed("safetensors.torch", "safetensors")
    path = folder / FILES["safetensors"][0]
    write_bytes(path, safetensors.save(net.net.state_dict(), dict(metadata)))
    again = U2Net(net.net.variant)
    again.load_state_dict(safetensors.load_file(path))
    loaded = Probability(again).eval()

    def run(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return loaded(torch.from_numpy(photos)).numpy()  # type: ignore[no-any-return]

    compare(net, run, size, batch, path.name)


FILES = {
    "onnx": ("model.onnx",),
    "openvino": ("model.xml", "model.bin"),
    "safetensors": ("model.safetensors",),
}
WRITERS = {"onnx": write_onnx, "openvino": write_openvino, "safetensors": write_safetensors}


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
