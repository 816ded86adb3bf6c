"""The benchmark of a whole folder against one photo at a time."""

import sys
from pathlib import Path

import pytest
from conftest import contents

from benchmarks import folder
from carseg.formats import Probability, write_onnx
from carseg.model import load
from carseg.u2net import U2Net

pytestmark = pytest.mark.usefixtures("shallow")


def test_all_photos_are_done_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "SIZE", (64, 48))
    shares = folder.write_photos(tmp_path, 7)
    assert [len(list(share.iterdir())) for share in shares] == [2, 2, 1, 1, 1]
    model = load(folder.random_weights("u2netp", tmp_path), size=64)
    seconds = folder.measure(model, shares, tmp_path)
    assert {name: len(times) for name, times in seconds.items()} == {
        "one at a time": 5,
        "folder": 5,
    }
    single, whole = (contents(tmp_path / name) for name in ("single", "whole"))
    assert len(single) == 7
    assert single == whole


@pytest.mark.slow
def test_exported_networks_of_any_size_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(folder, "SIZE", (64, 48))
    monkeypatch.setattr(folder, "CALLS", 1)
    write_onnx(Probability(U2Net("u2netp").eval()), tmp_path, 64, 1, {"image_size": "64"})
    words = ["folder", "--weights", str(tmp_path / "model.onnx"), "--photos", "80"]
    monkeypatch.setattr(sys, "argv", words)
    folder.main()
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == ["one", "folder", "calls"]


def test_the_table_has_the_ratios() -> None:
    seconds = {"one at a time": [3.0, 2.0, 4.0], "folder": [2.0, 1.0, 2.0], "calls": [8.0]}
    rows = [line.split()[-5:] for line in folder.table(seconds).splitlines()[1:]]
    assert rows[0] == ["3.000", "2.000", "4.000", "2.00", "times"]
    assert rows[1][-3:] == ["2.000", "1.000", "2.000"]
    assert rows[2] == ["8.000", "8.000", "8.000", "4.00", "times"]
