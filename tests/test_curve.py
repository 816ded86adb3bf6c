"""The curve: which epoch is best, what its file tells, and what a checkpoint keeps of it."""

from pathlib import Path

import pytest

from carseg.curve import COLUMNS, Curve, EpochScore, Row
from carseg.files import read_csv


def curve(*ious: float) -> Curve:
    """A curve of these validation IoUs; training gets worse where validation gets better."""
    made = Curve()
    for iou in ious:
        made.add(EpochScore(0.5, 0.7, 1 - iou), EpochScore(0.25, 0.8, iou))
    return made


@pytest.mark.parametrize(
    ("ious", "best"),
    [((0.5,), 0), ((0.5, 0.6, 0.4), 1), ((0.5, 0.6, 0.6), 1), ((0.5, 0.4, 0.3), 0), ((0, 0, 1), 2)],
)
def test_the_best_epoch_is_the_first_of_the_highest_validation_iou(
    ious: tuple[float, ...], best: int
) -> None:
    assert curve(*ious).kept("best") == best
    assert curve(*ious).kept("last") == len(ious) - 1


def test_an_epoch_is_better_only_where_the_file_shows_it() -> None:
    assert curve(0.98, 0.981).kept("best") == 1
    assert curve(0.98, 0.9800004).kept("best") == 0, (
        "the report, which reads the file, names epoch 0"
    )


def test_epochs_are_numbered_from_the_start_on() -> None:
    made = Curve()
    assert len(made) == 0
    rows = [made.add(EpochScore(0, 0, 0), EpochScore(0, 0, 0)) for _ in range(3)]
    assert [row.epoch for row in rows] == [0, 1, 2]
    assert len(made) == 3


def test_the_file_has_a_row_for_each_epoch(tmp_path: Path) -> None:
    curve(0.9, 0.12345678).write(tmp_path / "curve.csv")
    rows = list(read_csv(tmp_path / "curve.csv"))
    assert list(rows[0]) == list(COLUMNS)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    told = {"epoch": "1", "train_loss": "0.5", "val_loss": "0.25", "train_dice": "0.7"}
    told |= {"val_dice": "0.8", "train_iou": "0.876543", "val_iou": "0.123457"}
    assert rows[1] == told


def test_a_curve_taken_up_again_is_the_same() -> None:
    made, again = curve(0.5, 2 / 3, 1 / 3), curve(0.9, 0.95)
    again.load_state_dict(made.state_dict())
    assert (len(again), again.kept("best")) == (3, 1), "what was there before is forgotten"
    assert again.state_dict() == made.state_dict()
    assert again.state_dict()["scores"][1][1][-1] == 2 / 3, "not rounded, as in the file"


def test_a_line_tells_both_sides() -> None:
    row = Row(3, EpochScore(0.1, 0.2, 0.3), EpochScore(0.4, 0.5, 0.6))
    line = "bce   3/20  train | val  "
    line += "loss 0.1000 | 0.4000   dice 0.2000 | 0.5000   iou 0.3000 | 0.6000"
    assert row.line("bce", 20, better=False) == line
    assert row.line("bce", 20, better=True) == f"{line}  best so far"
