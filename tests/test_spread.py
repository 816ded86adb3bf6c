"""Mean, spread and interval of a score."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from carseg.spread import WORST, spread


def test_the_spread_of_known_values() -> None:
    found = spread([0.9, 0.7, 0.8], min)
    assert (found.mean, found.worst) == (0.8, 0.7)
    assert found.std == pytest.approx(np.std([0.9, 0.7, 0.8]), abs=1e-6)
    assert spread([0.5, 0.5], max) == (0.5, 0, 0.5, 0.5, 0.5)
    assert spread([2.0, 3.0], max).worst == 3


def test_the_interval_is_a_percentile_bootstrap_the_same_in_each_run() -> None:
    values = (np.random.default_rng(0).random(9) ** 3).tolist()
    whole = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    found = spread(values, min)
    assert (found.low, found.high) == (round(float(whole.low), 6), round(float(whole.high), 6))


def test_many_photos_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carseg.spread.RESAMPLES", 1000)
    values = np.random.default_rng(0).random(4000).tolist()
    tracemalloc.start()
    try:
        spread(values, min)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6, "all resamples at once are 32 MB, and 32 more of indices"


def test_the_worst_score_is_the_lowest_but_of_distances() -> None:
    found = {name: worst([1, 2]) for name, worst in WORST.items()}
    assert found == {"dice": 1, "iou": 1, "boundary_iou": 1, "hd95": 2}


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
