"""Mean, spread and interval of a score."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from carseg.scores import Scores
from carseg.spread import spread, spreads


def test_the_spread_of_known_values() -> None:
    found = spread([0.9, 0.7, 0.8])
    assert (found.mean, found.worst) == (0.8, 0.7)
    assert found.std == 0.1
    assert spread([0.5, 0.5], are_distances=True) == (0.5, 0, 0.5, 0.5, 0.5)
    assert spread([0.7]) == (0.7, 0, None, None, 0.7)
    assert spread([2.0, 3.0], are_distances=True).worst == 3


def test_the_interval_is_a_percentile_bootstrap_the_same_in_each_run() -> None:
    values = (np.random.default_rng(0).random(9) ** 3).tolist()
    level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.975, df=8) * (9 / 8) ** 0.5)
    whole = stats.bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", confidence_level=level,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = spread(values)
    assert (found.low, found.high) == (round(float(whole.low), 6), round(float(whole.high), 6))


def test_many_photos_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carseg.spread.RESAMPLES", 1000)
    values = np.random.default_rng(0).random(4000).tolist()
    tracemalloc.start()
    try:
        spread(values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6, "all resamples at once are 32 MB, and 32 more of indices"


def test_the_worst_score_is_the_lowest_but_of_distances() -> None:
    found = {n: s.worst for n, s in spreads({name: [1, 2] for name in Scores._fields}).items()}
    assert found == {"dice": 1, "iou": 1, "boundary_iou": 1, "hd95": 2}


# Of 200; five values can have 94 % at most, as the mean lies beyond all of them in the rest.
@pytest.mark.parametrize(("number", "least"), [(2, 183), (3, 183), (4, 183), (5, 178), (9, 181)])
def test_the_interval_covers_about_as_often_as_it_says(
    number: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carseg.spread.RESAMPLES", 2000)
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = spread(random.normal(0.9, 0.02, number).tolist(), are_distances=True)
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.mean < found.high
        hits += found.low <= 0.9 <= found.high
    assert least <= hits


def test_an_interval_ends_where_scores_do() -> None:
    scores, distances = spread([0.99, 0.5]), spread([0.99, 0.5], are_distances=True)
    assert (scores.low, scores.high) == (0, 1)
    assert distances.low == 0
    assert distances.high == pytest.approx(3.86, abs=0.01)


def test_an_interval_is_told_in_words() -> None:
    assert spread([0.75, 0.75]).interval(2) == "0.75 to 0.75"
    assert spread([0.75]).interval(2) == "of one photo: none"


def test_of_many_values_the_interval_is_students() -> None:
    values = np.random.default_rng(1).normal(0.9, 0.02, 40)
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    found = spread(values.tolist())
    assert (found.low, found.high) == pytest.approx(expected, abs=2e-4)
