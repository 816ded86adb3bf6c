"""Dice and IoU against scikit-learn's, and where that one leaves off."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as some
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from carseg.metrics import Counts, count, dice, iou, summarise

Mask = NDArray[np.bool_]

SHAPES = some.array_shapes(min_dims=2, max_dims=2, max_side=8)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(some.arrays(bool, shape), some.arrays(bool, shape)))
COUNTS = st.builds(Counts, *[st.integers(0, 10_000)] * 4)
EMPTY, FULL = np.zeros((3, 4), bool), np.ones((3, 4), bool)


@given(PAIRS)
def test_counts_are_scikit_learns(masks: tuple[Mask, Mask]) -> None:
    predicted, truth = masks
    table = confusion_matrix(truth.ravel(), predicted.ravel(), labels=[False, True])
    (tn, fp), (fn, tp) = table.tolist()
    assert count(predicted, truth) == Counts(tp, fp, fn, tn)


@given(PAIRS)
def test_scores_are_scikit_learns(masks: tuple[Mask, Mask]) -> None:
    predicted, truth = (mask.ravel() for mask in masks)
    c = count(*masks)
    assert iou(c) == pytest.approx(jaccard_score(truth, predicted, zero_division=1))
    assert dice(c) == pytest.approx(f1_score(truth, predicted, zero_division=1))


@given(COUNTS)
def test_dice_follows_from_iou(c: Counts) -> None:
    assert dice(c) == pytest.approx(2 * iou(c) / (1 + iou(c)))
    assert 0 <= iou(c) <= dice(c) <= 1


@pytest.mark.parametrize(
    ("predicted", "truth", "score"),
    [(EMPTY, EMPTY, 1.0), (FULL, FULL, 1.0), (EMPTY, FULL, 0.0), (FULL, EMPTY, 0.0)],
)
def test_empty_and_full_masks(predicted: Mask, truth: Mask, score: float) -> None:
    c = count(predicted, truth)
    assert (dice(c), iou(c)) == (score, score)


@pytest.mark.parametrize("shape", [(1, 4), (4, 3), (12,), (12, 1)])
def test_masks_of_different_shapes_are_not_compared(shape: tuple[int, ...]) -> None:
    # The first would broadcast, the others hold as many pixels.
    with pytest.raises(ValueError, match=re.escape(f"shapes differ: {shape} and (3, 4)")):
        count(np.ones(shape, bool), FULL)


def test_the_mean_counts_photos_and_the_pooled_score_counts_pixels() -> None:
    photos = [Counts(tp=90, fp=5, fn=5, tn=0), Counts(tp=1, fp=1, fn=2, tn=996)]
    assert summarise(photos) == {
        "dice": pytest.approx((180 / 190 + 2 / 5) / 2),
        "iou": pytest.approx((90 / 100 + 1 / 4) / 2),
        "dice_micro": pytest.approx(182 / 195),
        "iou_micro": pytest.approx(91 / 104),
    }


@given(st.lists(COUNTS, min_size=1, max_size=6))
def test_the_order_of_photos_does_not_matter(photos: list[Counts]) -> None:
    assert summarise(photos) == pytest.approx(summarise(photos[::-1]))
