"""The ways a photo can be laid, and which of them show a car as cars stand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

View = tuple[int, bool]  # quarter turns, and whether it is flipped then

# The group D4: every way to lay a photo on a table.
D4: tuple[View, ...] = tuple((turns, flip) for flip in (False, True) for turns in range(4))
AS_HELD, TURNED = D4[:1], D4[:4]  # as the photo is, and in all its quarter turns

# Probability from which a pixel is taken for car where a look is to tell how and where it is.
CAR = 0.5

# How many times as long as high a car must be for that to tell how it lies. From nearly every side
# cars are; seen from the front vans may be higher than wide, but hardly by a quarter.
CLEARLY = 1.25


def turn(x: Tensor, view: View) -> Tensor:
    """Lay (…, H, W) the way `view` says."""
    turns, flip = view
    x = torch.rot90(x, turns, (-2, -1))
    return x.flip(-1) if flip else x


def turn_back(x: Tensor, view: View) -> Tensor:
    """Undo `turn`."""
    turns, flip = view
    return torch.rot90(x.flip(-1) if flip else x, -turns, (-2, -1))


def standing_views(car: tuple[float, float], views: Sequence[View]) -> Sequence[View]:
    """Give those of `views` that show a car upright or upside down: wider than tall.

    All of them where that is not clear, as without a car, or holds in none.

    Args:
        car: its height and width in the photo as held, in any unit.
        views: how the photo may be laid.
    """
    height, width = car
    if max(height, width) <= CLEARLY * min(height, width):
        return views
    odd = height > width
    return [view for view in views if view[0] % 2 == odd] or views


def extent(car: NDArray[np.bool_]) -> tuple[float, float]:
    """Tell how far a car (H, W) extends up and across: deviations of its rows and its columns.

    Its outermost pixels would not do, as a speck taken for car moves those. Without a car, 0 and 0.
    """
    return _deviation(car.sum(axis=1)), _deviation(car.sum(axis=0))


def _deviation(counts: NDArray[np.int_]) -> float:
    """Give the standard deviation of positions, each counted so many times."""
    if not (total := counts.sum()):
        return 0.0
    at = np.arange(len(counts))
    mean = (counts * at).sum() / total
    return float(((counts * (at - mean) ** 2).sum() / total) ** 0.5)
