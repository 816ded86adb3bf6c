"""Turns and flips of a photo, and which of them show the car standing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

View = tuple[int, bool]  # quarter turns anticlockwise, and whether to flip then

# The group D4: every way to lay a photo on a table.
D4: tuple[View, ...] = tuple((turns, flip) for flip in (False, True) for turns in range(4))
AS_HELD, TURNED = D4[:1], D4[:4]  # as the photo is, and in all its quarter turns

# Probability from which a pixel counts as car in finding its box and orientation.
CAR = 0.5

# Ratio of a car's sides above which its orientation is clear. From nearly every side cars are wider
# than high; vans from the front may be higher than wide, but hardly by a quarter.
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


def standing_views(of_car: tuple[float, float], views: Sequence[View]) -> Sequence[View]:
    """Return those of `views` that show a car upright or upside down: wider than tall.

    If that is unclear, as without a car, or true of none, all are returned.

    Args:
        of_car: the car's height and width in the photo as held, in any unit, as of `extent`.
        views: turns and flips to choose from.
    """
    height, width = of_car
    if max(height, width) <= CLEARLY * min(height, width):
        return views
    odd = height > width
    return [view for view in views if view[0] % 2 == odd] or views


def extent(car: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the standard deviations of the rows and of the columns of a car's pixels, (H, W).

    Outermost pixels would be less robust, as a speck taken for car moves them. Without a car, 0, 0.
    """
    return _deviation(car.sum(axis=1)), _deviation(car.sum(axis=0))


def _deviation(counts: NDArray[np.int_]) -> float:
    """Return the standard deviation of positions, each counted so many times."""
    if not counts.any():
        return 0.0
    at = np.arange(len(counts))
    mean = np.average(at, weights=counts)
    return float(np.average((at - mean) ** 2, weights=counts) ** 0.5)
