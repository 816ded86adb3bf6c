"""Mean and spread of a score over photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, norm, t

from carseg.scores import Scores

LEVEL = 0.95  # of the interval
FEW = 5
RESAMPLES, AT_ONCE = 10_000, 100  # all of them at once take gigabytes with 20,000 photos
DISTANCES = ("hd95",)  # scores that are best at 0 and have no upper bound; others are best at 1


class Spread(NamedTuple):
    """Scores of all photos in short."""

    mean: float
    std: float  # of a sample: divided by one photo less
    low: float | None  # of the mean's interval; None: of one photo there is none
    high: float | None
    worst: float

    def interval(self, digits: int) -> str:
        """Return the interval for reading."""
        if self.low is None or self.high is None:
            return "of one photo: none"
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}"


def spreads(scores: Mapping[str, Sequence[float]]) -> dict[str, Spread]:
    """Summarise all scores of all photos, by their names in `Scores`."""
    return {name: spread(scores[name], name in DISTANCES) for name in Scores._fields}


def spread(values: Sequence[float], are_distances: bool = False) -> Spread:
    """Summarise one score of all photos; the interval is a percentile bootstrap over photos.

    It is widened, as percentiles alone are too narrow for few photos (the expanded percentile
    interval, Hesterberg 2015, arXiv:1411.5279). For fewer than `FEW` it is Student's t, as no
    resampled mean exceeds the extreme values.

    Args:
        values: a score of each photo.
        are_distances: the worst is the highest; else scores from 0 to 1, of which it is the lowest.
    """
    worst = max(values) if are_distances else min(values)
    mean = float(np.mean(values))
    if len(values) == 1:
        return Spread(round(mean, 6), 0, None, None, round(worst, 6))
    low = high = mean
    std = 0.0
    if len(set(values)) > 1:
        std = float(np.std(values, ddof=1))
        low, high = _interval(values, mean, std)
        low = max(0.0, low)
        if not are_distances:
            high = min(1.0, high)
    return Spread(*(round(x, 6) for x in (mean, std, low, high, worst)))


def _interval(values: Sequence[float], mean: float, std: float) -> tuple[float, float]:
    if len(values) < FEW:
        reach = t.ppf(1 - (1 - LEVEL) / 2, len(values) - 1) * std / len(values) ** 0.5
        return float(mean - reach), float(mean + reach)
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile",
        confidence_level=expanded(len(values)), rng=np.random.default_rng(0), batch=AT_ONCE,
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def expanded(number: int) -> float:
    """Return the level that makes a normal interval as wide as Student's t for `number` values."""
    reach = t.ppf(1 - (1 - LEVEL) / 2, number - 1) * (number / (number - 1)) ** 0.5
    return float(1 - 2 * norm.sf(reach))
