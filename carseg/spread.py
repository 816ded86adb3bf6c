"""Mean and spread of a score over photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, norm, t

LEVEL = 0.95  # of the interval
RESAMPLES, AT_ONCE = 10_000, 100  # all of them at once take gigabytes with 20,000 photos
WORST: Mapping[str, Callable[[Sequence[float]], float]] = {
    "dice": min,
    "iou": min,
    "boundary_iou": min,
    "hd95": max,
}


class Spread(NamedTuple):
    """Scores of all photos in short."""

    mean: float
    std: float  # of a sample: divided by one photo less
    low: float  # of the bootstrap interval of the mean
    high: float
    worst: float


def spread(values: Sequence[float], worst: Callable[[Sequence[float]], float]) -> Spread:
    """Summarise one score of all photos; the interval is a percentile bootstrap over photos.

    It reaches further out, as percentiles alone are too narrow for few photos (the expanded
    percentile interval, Hesterberg 2015, arXiv:1411.5279).
    """
    mean = float(np.mean(values))
    low = high = mean
    std = 0.0
    if len(set(values)) > 1:
        std = float(np.std(values, ddof=1))
        interval = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
            confidence_level=expanded(len(values)), rng=np.random.default_rng(0), batch=AT_ONCE,
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    return Spread(*(round(x, 6) for x in (mean, std, low, high, worst(values))))


def expanded(number: int) -> float:
    """Give the level at which a normal interval of so many values' mean is as wide as Student's."""
    reach = t.ppf(1 - (1 - LEVEL) / 2, number - 1) * (number / (number - 1)) ** 0.5
    return float(1 - 2 * norm.sf(reach))
