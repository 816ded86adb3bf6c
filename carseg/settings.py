"""Settings that weights were trained with: what their project tells of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from carseg.errors import CarsegError, warn

if TYPE_CHECKING:
    from carseg.params import Params

SIZES = range(32, 4097)  # of the side of the square that a network sees, in pixels
DEVICES = ("auto", "cpu", "cuda")
EXPORTED = (".onnx", ".xml")  # networks that carseg itself runs, too, and that tell of themselves


def settings_of(weights: Path) -> Params:
    """Read the settings of the project that weights belong to; without one, the defaults.

    A `params.yaml` with other names, and no pipeline beside it, is taken for another program's, and
    that is told. The image size is that of their training, by `dvc.lock`: `params.yaml` may have
    changed since.

    Raises:
        CarsegError: as `load_params`.
        OSError: the weights, or a `dvc.yaml` or `dvc.lock` beside them, may not be read.
    """
    from carseg.lock import read_lock
    from carseg.params import Params, load_params

    file = weights.parent / "params.yaml"
    if names := _foreign_names(weights.parent):
        warn(f"{file}: {', '.join(names)} is no setting of carseg; nothing is taken from there")
    if is_foreign(weights.parent):
        return Params()
    params = load_params(file) if file.is_file() else Params()
    try:
        run = read_lock(weights.parent / "dvc.lock").maker(weights.name)
        trained = Params.model_validate({"image_size": run.settings()["image_size"]})
    except (CarsegError, KeyError, ValueError):  # it does not tell
        return params
    if trained.image_size == params.image_size or run.differs(weights):
        return params
    return params.model_copy(update={"image_size": trained.image_size})


def is_foreign(folder: Path) -> bool:
    """Return whether a folder is of another program, whose files may have the same names."""
    pipeline = folder / "dvc.yaml"
    if pipeline.is_file():
        return "stages.train_dice" not in pipeline.read_text("utf-8", "replace")
    return bool(_foreign_names(folder))


def _foreign_names(folder: Path) -> list[str]:
    """List what a `params.yaml` without a pipeline sets, but carseg does not know."""
    from yaml import YAMLError

    from carseg.params import Params, read_yaml

    if (folder / "dvc.yaml").is_file():
        return []
    try:
        content = read_yaml((folder / "params.yaml").read_text("utf-8"))
    except (OSError, YAMLError, ValueError):  # of which `load_params` tells
        return []
    names = content if isinstance(content, dict) else {}
    return sorted(str(name) for name in names if name not in Params.model_fields)
