"""What a result depends on beyond data, parameters and code: the machine and what is installed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from carseg.device import Device
from carseg.files import write_json

FOLDER = Path("provenance")
PACKAGES = ("albumentations", "numpy", "onnx", "opencv-python-headless", "pillow", "scikit-learn",
            "scipy", "torch")  # fmt: skip


def record(stage: str, device: Device, world_size: int = 1) -> None:
    """Write `provenance/STAGE.json`; the same machine writes the same bytes."""
    write_json(FOLDER / f"{stage}.json", provenance(device, world_size))


def provenance(
    device: Device, world_size: int = 1, packages: Sequence[str] = PACKAGES
) -> dict[str, object]:
    """Return what the last digits of a result depend on.

    The number of threads and the instruction set decide the order of sums, the build of torch the
    kernels. On one machine it is the same in every run.
    """
    gpu = torch.cuda.get_device_name() if device.torch.type == "cuda" else None
    return {
        "device": device.torch.type,
        "gpu": gpu,
        "precision": str(device.dtype).removeprefix("torch."),
        "processes": world_size,
        "threads": torch.get_num_threads(),  # of each process
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch_build": torch.version.git_version,
        "cuda": torch.version.cuda,
        "packages": {name: version(name) for name in packages},
    }


def processor() -> str:
    """Return the processor's name as its maker writes it, where the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    first: dict[str, str] = {}  # core
    for name, _, value in (line.partition(":") for line in lines):
        first.setdefault(name.strip(), value.strip())
    # ARM's have numbers in the place of a name.
    numbers = [f"{key} {first[key]}" for key in ("CPU implementer", "CPU part") if key in first]
    named = first.get("model name") or ", ".join(numbers)
    return named or platform.processor() or platform.machine()
