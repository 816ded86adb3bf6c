"""Dice and IoU of masks, from counts of true and false pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Counts(NamedTuple):
    """Pixels of one photo (or several, summed), with car as the positive class."""

    tp: int
    fp: int
    fn: int
    tn: int


def count(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Counts:
    """Compare two masks of one shape, bool, True where there is car.

    Raises:
        ValueError: the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"shapes differ: {predicted.shape} and {truth.shape}")
    tp = int(np.count_nonzero(predicted & truth))
    fp = int(np.count_nonzero(predicted)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return Counts(tp, fp, fn, truth.size - tp - fp - fn)


def dice(c: Counts) -> float:
    """Dice coefficient (F1; Dice 1945), 0…1; no car in either mask is full agreement."""
    return _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn)


def iou(c: Counts) -> float:
    """Intersection over union (Jaccard 1912), 0…1; no car in either mask is full agreement."""
    return _ratio(c.tp, c.tp + c.fp + c.fn)


def summarise(photos: Sequence[Counts]) -> dict[str, float]:
    """Return means over photos (`dice`, `iou`) and pooled scores (`dice_micro`, `iou_micro`).

    The mean counts every photo alike, the pooled score every pixel.
    """
    pooled = Counts(*(sum(column) for column in zip(*photos, strict=True)))
    return {
        "dice": float(np.mean([dice(c) for c in photos])),
        "iou": float(np.mean([iou(c) for c in photos])),
        "dice_micro": dice(pooled),
        "iou_micro": iou(pooled),
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
