"""Weights files into networks and back: PyTorch checkpoints and folded ONNX files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn

from carseg.errors import CarsegError, is_lack_of_memory
from carseg.files import write_bytes
from carseg.u2net import VARIANTS, U2Net
from carseg.widen import widen

State = dict[str, Tensor]
WRAPPED = "module."  # what DataParallel puts before every name


def start(variant: str, folder: Path, seed: int) -> U2Net:
    """Build the net that training starts from.

    Args:
        variant: a key of `VARIANTS`.
        folder: holds one .pth or .onnx file, or none: random weights.
        seed: of what the file does not set: all weights, or the channels added in widening.

    Raises:
        CarsegError: the file cannot be read or holds another network.
        OSError, MemoryError, RuntimeError: as `read_checkpoint`.
    """
    if not folder.is_dir():
        raise CarsegError(f"{folder}: there is no such folder; run dvc repro")
    path = next((path for path in folder.iterdir() if path.suffix in (".pth", ".onnx")), None)
    if path is None:
        return _random(variant, seed)
    state = read_onnx(path) if path.suffix == ".onnx" else read_checkpoint(path)
    given = variant_of(state, path)
    if (given, variant) == ("u2netp", "u2net"):
        state = widen(state, _random(variant, seed).state_dict())
    elif given != variant:
        raise CarsegError(
            f"{path}: holds {given}, which does not fit into {variant}; set model: {given}"
        )
    net = net_of(state, variant)
    net.keep_exact()
    return net


def _random(variant: str, seed: int) -> U2Net:
    torch.manual_seed(seed)
    return U2Net(variant)


def load(variant: str, path: Path) -> U2Net:
    """Build a net with the weights that `save` wrote.

    Raises:
        CarsegError: the file cannot be read or holds another network.
        OSError, MemoryError, RuntimeError: as `read_checkpoint`.
    """
    net = read(path)
    if net.variant != variant:
        raise CarsegError(f"{path}: holds another network than model: {variant}; train anew")
    net.keep_exact()
    return net


def read(path: Path) -> U2Net:
    """Build the net, of either variant, whose weights a checkpoint holds.

    Raises:
        CarsegError: the file cannot be read or holds another network.
        OSError, MemoryError, RuntimeError: as `read_checkpoint`.
    """
    state = read_checkpoint(path)
    return net_of(state, variant_of(state, path))


def net_of(state: State, variant: str) -> U2Net:
    """Build a net of a variant, a key of `VARIANTS`, with weights that `variant_of` says fit it."""
    net = blank(variant).to_empty(device="cpu")
    net.load_state_dict(state, strict=True)
    return net


def blank(variant: str) -> U2Net:
    """Build a net of a variant on no device: shapes without weights, which take long to draw."""
    with torch.device("meta"):
        return U2Net(variant)


def save(net: nn.Module, path: Path) -> None:
    """Write the state dict, as tensors on the CPU, under the key names of the authors' code.

    The same weights give the same bytes under every file name.
    """
    state = {
        # A copy, as the strides of channels-last weights would be written too.
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in net.state_dict().items()
    }
    # Into memory first: torch.save writes the name of a file it opens itself into its content.
    content = io.BytesIO()
    torch.save(state, content)
    write_bytes(path, content.getbuffer())


def interpolate(net: nn.Module, end: nn.Module, share: float) -> None:
    """Interpolate a net's weights in place: unchanged at share 0, those of `end` at share 1.

    A net half-way keeps more of what the start knew than it loses of what was learnt since
    (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903). Integers, which are batch norms' counters,
    are copied. The nets may be on different devices.
    """
    wanted = end.state_dict()
    with torch.no_grad():
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                value.lerp_(wanted[key].to(value.device), share)
            else:
                value.copy_(wanted[key])


def read_checkpoint(path: Path) -> State:
    """Read a state dict; no code that the file may hold is run.

    Raises:
        CarsegError: the file is missing, broken, or holds anything but tensors by name.
        OSError: it may not be read, or the disk fails.
        MemoryError, RuntimeError: there is too little memory.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CarsegError(
            f"{path}: there is no such file; check the path, or run dvc repro to train it"
        ) from error
    except Exception as error:  # torch has no common base for what a broken file may raise
        if _is_of_the_machine(error):
            raise
        raise CarsegError(
            f"{path}: is not a whole PyTorch checkpoint of tensors alone; copy it anew, or save "
            "net.state_dict()"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise CarsegError(f"{path}: is not a state dict; save net.state_dict() alone")
    if all(key.startswith(WRAPPED) for key in state):
        state = {key.removeprefix(WRAPPED): value for key, value in state.items()}
    # Official checkpoints predate this counter, which nothing here depends on.
    for key in [key for key in state if key.endswith(".running_mean")]:
        counter = key.replace("running_mean", "num_batches_tracked")
        state.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return state


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether a disk, a permission or memory is to blame, and not what a file holds."""
    of_file = isinstance(error, (FileNotFoundError, IsADirectoryError))
    return is_lack_of_memory(error) or (isinstance(error, OSError) and not of_file)


def read_onnx(path: Path, content: bytes | None = None) -> State:
    """Read the convolutions of an ONNX file, in which batch norm is folded into them.

    The state dict has batch norms that change nothing in eval mode: mean 0, variance 1.

    Args:
        path: of the file.
        content: what is in it, where that has been read already.

    Raises:
        CarsegError: the file is broken or is not a U²-Net.
        OSError: it may not be read, or the disk fails.
        MemoryError, RuntimeError: there is too little memory.
    """
    try:
        graph = onnx.load_model_from_string(path.read_bytes() if content is None else content).graph
        if any(map(uses_external_data, graph.initializer)):
            raise ValueError("weights in another file")
        if any(node.op_type == "DequantizeLinear" for node in graph.node):
            raise CarsegError(f"{path}: is in 8-bit integers; take the weights that it was made of")
        value_of = {tensor.name: tensor for tensor in graph.initializer}
        convolutions = [
            [torch.from_numpy(np.array(numpy_helper.to_array(value_of[name]))) for name in wanted]
            for wanted in (node.input[1:3] for node in graph.node if node.op_type == "Conv")
        ]
    except CarsegError:
        raise
    except Exception as error:  # onnx has no common base for what a broken file may raise
        if _is_of_the_machine(error):
            raise
        raise CarsegError(
            f"{path}: is not a whole ONNX file with its weights inside; copy or export it anew"
        ) from error
    if any(node.op_type == "BatchNormalization" for node in graph.node):
        raise CarsegError(
            f"{path}: has batch norms beside its convolutions; fold them in, as torch does when it "
            "exports a net in eval mode, or take another file"
        )
    for variant in VARIANTS:
        net = blank(variant)
        layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        shapes = [[layer.weight.shape, (layer.out_channels,)] for layer in layers.values()]
        if shapes == [[value.shape for value in pair] for pair in convolutions]:
            state = identity_batch_norm(net)
            for name, (weight, bias) in zip(layers, convolutions, strict=True):
                state |= {f"{name}.weight": weight, f"{name}.bias": bias}
            return state
    raise CarsegError(
        f"{path}: is not a U²-Net with batch norm folded in ({len(convolutions)} convolutions); "
        "take another file or init: scratch"
    )


def identity_batch_norm(net: nn.Module) -> State:
    """Return the state of the net's batch norms under which each is the identity in eval mode."""
    state: State = {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            fresh = nn.BatchNorm2d(layer.num_features, layer.eps)
            nn.init.constant_(fresh.weight, (1 + layer.eps) ** 0.5)
            state |= fresh.state_dict(prefix=f"{name}.")
    return state


def variant_of(state: State, path: Path) -> str:
    """Return which variant a state dict belongs to, by its key names and shapes.

    Raises:
        CarsegError: to none.
    """
    shapes = {key: value.shape for key, value in state.items()}
    for variant in VARIANTS:
        net = blank(variant)
        if shapes == {key: value.shape for key, value in net.state_dict().items()}:
            return variant
    raise CarsegError(
        f"{path}: its {len(state)} tensors are not those of a U²-Net with 3 channels in and 1 "
        "out; take another file"
    )
