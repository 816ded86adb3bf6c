"""Settings that weights were trained with: the `params.yaml` of their project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carseg.params import Params

EXPORTED = (".onnx", ".xml")  # networks that carseg itself runs, too


def settings_of(weights: Path) -> Params:
    """Read the settings of the project that weights are of; there may be none, then defaults.

    Raises:
        CarsegError: as `load_params`.
    """
    from carseg.params import Params, load_params

    file = settings_file(weights)
    return load_params(file) if file else Params()


def settings_file(weights: Path) -> Path | None:
    """Find the params.yaml of the project that weights are of, not of where somebody stands."""
    places = [weights.parent]
    if weights.suffix.lower() in EXPORTED:  # in a folder of their own in the project
        places.append(Path(os.path.normpath(weights.parent / "..")))
    return next((file for at in places if (file := at / "params.yaml").is_file()), None)
