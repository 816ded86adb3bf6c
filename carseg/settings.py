"""Settings that weights were trained with: what their project tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from carseg.errors import CarsegError

if TYPE_CHECKING:
    from carseg.params import Params

EXPORTED = (".onnx", ".xml")  # networks that carseg itself runs, too, and that tell of themselves


def settings_of(weights: Path) -> Params:
    """Read the settings of the project that weights belong to; without one, the defaults.

    The image size is that of their training, by `dvc.lock`: `params.yaml` may have changed since.

    Raises:
        CarsegError: as `load_params`.
    """
    from pydantic import ValidationError

    from carseg.lock import read_lock
    from carseg.params import Params, load_params

    if is_foreign(weights.parent):
        return Params()
    file = weights.parent / "params.yaml"
    params = load_params(file) if file.is_file() else Params()
    try:
        run = read_lock(weights.parent / "dvc.lock").maker(weights.name)
        trained = Params.model_validate({"image_size": run.settings()["image_size"]})
    except (CarsegError, KeyError, ValidationError):  # it does not tell
        return params
    if trained.image_size == params.image_size or run.differs(weights):
        return params
    return params.model_copy(update={"image_size": trained.image_size})


def is_foreign(folder: Path) -> bool:
    """Return whether a folder is another DVC project, whose files may have the same names."""
    pipeline = folder / "dvc.yaml"
    return pipeline.is_file() and "stages.train_dice" not in pipeline.read_text("utf-8", "replace")
