"""Mean, spread and interval of a score."""

import numpy as np
import pytest
from scipy import stats

from carseg.spread import spread


def test_the_spread_of_known_values() -> None:
    found = spread([0.9, 0.7, 0.8], min)
    assert (found.mean, found.worst) == (0.8, 0.7)
    assert found.std == pytest.approx(np.std([0.9, 0.7, 0.8]), abs=1e-6)
    assert spread([0.5, 0.5], max) == (0.5, 0, 0.5, 0.5, 0.5)
    assert spread([2.0, 3.0], max).worst == 3


def test_the_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        found = spread(random.normal(0.9, 0.02, 40).tolist(), min)
        assert found.low < found.mean < found.high
        hits += found.low <= 0.9 <= found.high
    # 95 of 100, less a little for 40 values; the chance to see fewer than 86 is below 1 in 1000.
    assert hits >= 86
    values = random.normal(0.9, 0.02, 40)
    normal = stats.norm.interval(0.95, values.mean(), values.std() / 40**0.5)
    found = spread(values.tolist(), min)
    assert (found.low, found.high) == pytest.approx(normal, abs=1e-3)
