"""Scores of masks: their names, the file that holds them, the table that a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import AfterValidator, TypeAdapter, ValidationError

from carseg.errors import CarsegError

ByView: TypeAlias = "dict[str, dict[str, float]]"  # view → score, its mean over photos


class Scores(NamedTuple):
    """How one predicted mask agrees with the truth."""

    dice: float
    iou: float
    boundary_iou: float
    hd95: float  # pixels


def _whole(scores: ByView) -> ByView:
    for view, found in scores.items():
        if missing := set(Scores._fields) - found.keys():
            raise ValueError(f"{view} has no {', '.join(sorted(missing))}")
    return scores


METRICS = TypeAdapter(dict[str, Annotated[ByView, AfterValidator(_whole)]])


def read_metrics(path: Path) -> dict[str, ByView]:
    """Read a `metrics.json`: net → view → score.

    Raises:
        CarsegError: there is none, or it holds something else.
        OSError: it may not be read.
    """
    try:
        return METRICS.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CarsegError(f"{path}: there is no such file; run dvc repro") from error
    except ValidationError as error:
        raise CarsegError(f"{path}: is not what carseg writes there; run dvc repro") from error


def as_table(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay scores out, a row for each net and view."""
    lines = [f"{'means over photos':<20}" + "".join(f"{name:>14}" for name in Scores._fields)]
    for net, views in metrics.items():
        for view, found in views.items():
            scores = "".join(f"{found[name]:>14.4f}" for name in Scores._fields)
            lines.append(f"{f'{net} {view}':<20}{scores}")
    return "\n".join(lines)
