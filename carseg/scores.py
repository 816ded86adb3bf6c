"""The scores in `metrics.json`, and the table that a terminal shows of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, TypeAdapter, ValidationError

from carseg.errors import CarsegError

MEANS = ("dice", "iou", "boundary_iou", "hd95")  # over photos; hd95 in pixels

Scores: TypeAlias = "dict[str, dict[str, float]]"  # view → score


def _whole(scores: Scores) -> Scores:
    for view, found in scores.items():
        if missing := set(MEANS) - found.keys():
            raise ValueError(f"{view} has no {', '.join(sorted(missing))}")
    return scores


METRICS = TypeAdapter(dict[str, Annotated[Scores, AfterValidator(_whole)]])


def read_metrics(path: Path) -> dict[str, Scores]:
    """Read a `metrics.json`: net → view → score.

    Raises:
        CarsegError: there is none, or it holds something else.
    """
    try:
        return METRICS.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CarsegError(f"{path}: there is no such file; run dvc repro") from error
    except ValidationError as error:
        raise CarsegError(f"{path}: is not what carseg writes there; run dvc repro") from error


def as_table(metrics: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Lay scores out, a row for each net and view."""
    lines = [f"{'means over photos':<20}" + "".join(f"{name:>14}" for name in MEANS)]
    for net, views in metrics.items():
        for view, found in views.items():
            scores = "".join(f"{found[name]:>14.4f}" for name in MEANS)
            lines.append(f"{f'{net} {view}':<20}{scores}")
    return "\n".join(lines)
