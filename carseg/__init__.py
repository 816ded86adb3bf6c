"""carseg: a folder of car photos and masks becomes a measured segmentation model.

The way the data takes: photo → tensor → logits → mask → score, one module each
(`photos`, `tensors`, `u2net`, `predict`, `metrics`); `dvc.yaml` shows the order of the stages.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from carseg.errors import CarsegError

if TYPE_CHECKING:
    from carseg.model import Model, load, untrained

# albumentations asks the network for a newer version of itself on import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
__all__ = ["CarsegError", "Model", "__version__", "load", "untrained"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # Not imported until asked for: torch takes seconds, `carseg --help` should not.
    if name in ("Model", "load", "untrained"):
        from carseg import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
