"""Exported files as functions: photos in, probabilities out, on the engine of each format."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from carseg.device import Device
from carseg.errors import CarsegError, as_memory_error, import_optional
from carseg.formats import INT8
from carseg.predict import Look

PROVIDERS = {  # of ONNX Runtime; with TF32, a GPU's convolutions round to 10 bits
    "cuda": ("CUDAExecutionProvider", {"use_tf32": 0}),
    "cpu": ("CPUExecutionProvider", {}),
}
DEFAULTS = {"threshold": "0.5", "cleanup": "false"}  # in metadata, as JSON, with what else holds


class Exported(NamedTuple):
    """A network in a file, and what its metadata tell."""

    look: Look  # takes one photo at a time
    size: int  # side of its square input, in pixels
    threshold: float  # probability from which a pixel is car
    cleanup: bool  # whether masks are to be reduced to their largest piece, without holes
    divided: Callable[[int], Look] | None = None  # makes a look for so many threads at once


def load_exported(path: Path, device: str, precision: str = "auto") -> Exported:
    """Open a file of `carseg export`.

    Args:
        path: model.onnx or model.xml.
        device: auto, cpu or cuda.
        precision: auto, float32 or bfloat16, of OpenVINO's float32 files alone. ONNX Runtime always
            computes in float32, and 8-bit files have their own precision.

    Raises:
        CarsegError: the file is missing, broken, not one of `carseg export`, or takes several
            photos at once; its engine is not installed; or it cannot run on that device.
        MemoryError: there is too little memory.
        OSError: the file may not be read.
    """
    if not path.is_file():
        raise CarsegError(f"{path}: there is no such file; run carseg export")
    path.open("rb").close()  # an OSError tells of one that may not be read
    openvino = path.suffix.lower() == ".xml"
    if openvino and not (weights := path.with_suffix(".bin")).is_file():
        raise CarsegError(f"{weights}: there is no such file; copy it along with {path.name}")
    try:
        with as_memory_error():
            return _open_openvino(path, device, precision) if openvino else _open_onnx(path, device)
    except (CarsegError, MemoryError):
        raise
    except Exception as error:  # the engines have no common base for what a broken file may raise
        why = " ".join(str(error).split())
        raise CarsegError(
            f"{path}: cannot be opened as what carseg export writes ({why}); export it anew"
        ) from error


def _open_onnx(path: Path, device: str) -> Exported:
    runtime = import_optional("onnxruntime", "onnx")
    wanted = [provider for short, provider in PROVIDERS.items() if device in ("auto", short)]
    providers = [p for p in wanted if p[0] in runtime.get_available_providers()]
    if not providers:
        raise CarsegError(f"device {device}: this ONNX Runtime has none; take cpu")
    session = runtime.InferenceSession(str(path), providers=providers)
    if device == "cuda" and PROVIDERS["cuda"][0] not in session.get_providers():
        # It warns, then computes on the processor.
        raise CarsegError("device cuda: ONNX Runtime cannot start on it; fix CUDA, or take cpu")
    known = session.get_modelmeta().custom_metadata_map
    _check_ours(path, known)
    _take_one(path, session.get_inputs()[0].shape[0])

    def look(photos: Tensor) -> Tensor:
        with as_memory_error():
            return torch.from_numpy(session.run(None, {"photo": photos.numpy()})[0])

    return _exported(look, known)


def _open_openvino(path: Path, device: str, precision: str) -> Exported:
    openvino = import_optional("openvino", "openvino")
    if device == "cuda":
        raise CarsegError("device cuda: OpenVINO has none; take cpu, or the .onnx file")
    core = openvino.Core()
    model = core.read_model(path)
    known = {
        name: model.get_rt_info(["carseg", name]).astype(str)
        for name in ("image_size", *DEFAULTS, "precision")
        if model.has_rt_info(["carseg", name])
    }
    _check_ours(path, known)
    size = int(known["image_size"])
    batch = model.input(0).partial_shape[0]
    _take_one(path, batch.get_length() if batch.is_static else None)
    # What a network in 8-bit integers computes in float32 needs that.
    fast = known.get("precision") != INT8 and Device(precision, "cpu").dtype == torch.bfloat16
    hint = "bf16" if fast else "f32"
    model.reshape([1, 3, size, size])  # photos come one by one, and known sizes are faster

    @cache
    def divided(streams: int) -> Look:
        settings = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": streams}
        compiled = core.compile_model(model, "CPU", settings)
        threads = threading.local()  # each has a request of its own, as one serves one at a time

        def look(photos: Tensor) -> Tensor:
            with as_memory_error():
                if not hasattr(threads, "request"):
                    threads.request = compiled.create_infer_request()
                return torch.from_numpy(np.array(threads.request.infer([photos.numpy()])[0]))

        return look

    return _exported(divided(1), known, divided)


def _check_ours(path: Path, known: Mapping[str, str]) -> None:
    """Check that a network is one of `carseg export`, by what it tells of itself."""
    if "image_size" not in known:
        raise CarsegError(
            f"{path}: is a network, but not of carseg export; for what the official weights find, "
            "take carseg predict --untrained"
        )


def _exported(
    look: Look, known: Mapping[str, str], divided: Callable[[int], Look] | None = None
) -> Exported:
    told = {name: json.loads(known.get(name, default)) for name, default in DEFAULTS.items()}
    return Exported(look, int(known["image_size"]), **told, divided=divided)


def _take_one(path: Path, batch: object) -> None:
    """Check that a file takes photos one at a time; `batch` is an int only where it is fixed."""
    if isinstance(batch, int) and batch != 1:
        raise CarsegError(
            f"{path}: takes {batch} photos at once, here they come one by one; export it anew "
            "without --batch"
        )
