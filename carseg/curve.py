"""The curve of a training: how its net does before the first epoch and after each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from carseg.files import write_csv

COLUMNS = ("epoch", "train_loss", "val_loss", "train_dice", "val_dice", "train_iou", "val_iou")
DIGITS = 6  # decimals in the file


class EpochScore(NamedTuple):
    """How a net does on some photos."""

    loss: float
    dice: float
    iou: float


class Row(NamedTuple):
    """One epoch, 0 being the net as it came."""

    epoch: int
    train: EpochScore
    val: EpochScore

    def values(self) -> list[object]:
        """Return the row in the order of `COLUMNS`."""
        pairs = zip(self.train, self.val, strict=True)
        return [self.epoch, *(round(value, DIGITS) for pair in pairs for value in pair)]

    def line(self, task: str, epochs: int, better: bool) -> str:
        """Return the row for reading."""
        loss, dice, iou = (
            f"{name} {train:.4f} | {val:.4f}"
            for name, train, val in zip(EpochScore._fields, self.train, self.val, strict=True)
        )
        best = "  best so far" if better else ""
        return f"{task} {self.epoch:>3}/{epochs}  train | val  {loss}   {dice}   {iou}{best}"


class Curve:
    """All epochs so far."""

    def __init__(self) -> None:
        self._rows: list[Row] = []

    def __len__(self) -> int:
        """Return the number of rows, which is the next epoch's number."""
        return len(self._rows)

    def add(self, train: EpochScore, val: EpochScore) -> Row:
        """Note how the net does after the next epoch."""
        row = Row(len(self), train, val)
        self._rows.append(row)
        return row

    def kept(self, keep: str) -> int:
        """Return the epoch to keep, by IoU as rounded in the file, so that both agree."""
        return kept_epoch([round(row.val.iou, DIGITS) for row in self._rows], keep)

    def write(self, path: Path) -> None:
        """Write a CSV file, a row for each epoch."""
        write_csv(path, COLUMNS, [row.values() for row in self._rows])

    def state_dict(self) -> dict[str, Any]:
        """Return the scores to the last digit, for a checkpoint."""
        return {"scores": [(tuple(row.train), tuple(row.val)) for row in self._rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the scores back, in place of what is there."""
        self._rows = []
        for train, val in state_dict["scores"]:
            self.add(EpochScore(*train), EpochScore(*val))


def kept_epoch(val_ious: Sequence[float], keep: str) -> int:
    """Return the epoch whose weights are kept, 0 being the net as it came.

    Args:
        val_ious: validation IoU of each epoch.
        keep: the `last` epoch, or the `best`: that of the highest IoU, of equal ones the first.
    """
    return len(val_ious) - 1 if keep == "last" else val_ious.index(max(val_ious))
