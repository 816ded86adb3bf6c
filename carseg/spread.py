"""Mean and spread of a score over photos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

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
    std: float  # over photos
    low: float  # of the 95 % bootstrap interval of the mean
    high: float
    worst: float


def spread(values: Sequence[float], worst: Callable[[Sequence[float]], float]) -> Spread:
    """Summarise one score of all photos; the interval is a percentile bootstrap over photos."""
    mean = float(np.mean(values))
    low = high = mean
    if len(set(values)) > 1:
        interval = bootstrap(
            (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
            rng=np.random.default_rng(0), batch=AT_ONCE,
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    return Spread(*(round(x, 6) for x in (mean, float(np.std(values)), low, high, worst(values))))
