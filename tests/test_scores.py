"""The scores of a run, as `carseg scores` shows them."""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import run_carseg
from project import ROOT

from carseg.errors import CarsegError
from carseg.scores import as_table, read_metrics

SCORES = {"dice": 0.98765, "iou": 0.97, "boundary_iou": 0.8, "hd95": 123.45678, "iou_micro": 0.5}


def test_the_table_has_a_row_for_each_net_and_view_and_fits_a_terminal() -> None:
    rows = as_table({"untrained": {"plain": SCORES}, "dice": {"d4_closer": SCORES}}).split("\n")
    assert [row.split() for row in rows[1:]] == [
        ["untrained", "plain", "0.9877", "0.9700", "0.8000", "123.4568"],
        ["dice", "d4_closer", "0.9877", "0.9700", "0.8000", "123.4568"],
    ]
    assert rows[0].split()[3:] == ["dice", "iou", "boundary_iou", "hd95"]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert len(rows[0]) < 80


def test_the_committed_scores_are_shown_in_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    committed = subprocess.check_output(["git", "show", "HEAD:metrics.json"], cwd=ROOT)
    Path("metrics.json").write_bytes(committed)
    run_carseg("scores")
    shown = capsys.readouterr().out.splitlines()
    metrics = json.loads(Path("metrics.json").read_text())
    assert len(shown) == 1 + sum(len(views) for views in metrics.values())
    assert shown[-1].split()[:3] == [
        "dice",
        "d4_closer",
        f"{metrics['dice']['d4_closer']['dice']:.4f}",
    ]


@pytest.mark.parametrize("content", ["", "[]", '{"dice": 1}', '{"dice": {"plain": {"dice": 0.9}}}'])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "metrics.json"
    with pytest.raises(CarsegError, match=r"metrics\.json: there is no such file; run dvc repro"):
        read_metrics(file)
    file.write_text(content)
    with pytest.raises(CarsegError, match=r"metrics\.json: is not what carseg writes there"):
        read_metrics(file)
