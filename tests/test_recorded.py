"""What DVC records is what a result was made with, or the stage fails."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from project import ROOT

from carseg.errors import CarsegError
from carseg.recorded import Recorded

PIPELINE = """
stages:
  train_bce:
    deps: [stages/train_bce.py, carseg/train.py, carseg/sample, dataset, Weights, u2net.pth]
    params: [epochs, split, patience]
  evaluate:
    deps: [carseg/train.py]
"""
PARAMS = "epochs: 20\npatience: null\nsplit: {val_size: 5, fold: null}\nworkers: 0\n"
MODULE = Path("carseg/train.py")
DRAWN = Path("carseg/sample/paint.py")  # of a folder that is named as a whole


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("carseg/sample", "stages", "dataset/Image", "Image", "Weights"):
        Path(folder).mkdir(parents=True)
    for data in ("dataset/Image/a.jpg", "u2net.pth"):
        Path(data).write_text("data")
    Path("dvc.yaml").write_text(PIPELINE)
    Path("params.yaml").write_text(PARAMS)
    for path in (MODULE, DRAWN, Path("stages/train_bce.py")):
        path.write_text("pass")


def set_to(old: str, new: str) -> None:
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def test_code_is_that_which_the_stage_names() -> None:
    Path("carseg/outputs.py").write_text("not of this stage")
    code = Recorded("train_bce").code
    assert sorted(code) == [str(DRAWN), str(MODULE), "stages/train_bce.py"]
    MODULE.write_text("other")
    again = Recorded("train_bce").code
    assert [path for path in code if code[path] != again[path]] == [str(MODULE)]
    assert Recorded("nothing of the kind").code == {}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda: set_to("epochs: 20", "epochs: 5"), "params.yaml: epochs"),
        (lambda: set_to("fold: null", "fold: 1"), "params.yaml: split"),
        (lambda: set_to("patience: null", "patience: 3"), "params.yaml: patience"),
        (lambda: set_to("epochs: 20\n", ""), "params.yaml: epochs"),
        (lambda: Path("params.yaml").write_text("<<<<<<< HEAD"), "params.yaml: epochs"),
        (lambda: MODULE.write_text("other"), "carseg/train.py:"),
        (MODULE.unlink, "carseg/train.py:"),
        (lambda: DRAWN.write_text("other"), "carseg/sample/paint.py:"),
        (DRAWN.unlink, "carseg/sample/paint.py:"),
        (lambda: Path("carseg/sample/new.py").touch(), "carseg/sample/new.py:"),
        (lambda: Path("dataset/Image/new.jpg").touch(), "dataset:"),
        (lambda: Path("dataset/Image/a.jpg").write_text("other"), "dataset:"),
        (Path("dataset/Image/a.jpg").unlink, "dataset:"),
        (lambda: Path("u2net.pth").write_text("other"), "u2net.pth:"),
    ],
)
def test_what_was_changed_is_named(change: Callable[[], object], name: str) -> None:
    recorded = Recorded("train_bce")
    change()
    remedy = "" if name in ("dataset:", "u2net.pth:") else "set it back and "
    with pytest.raises(
        CarsegError, match=rf"^{name} was changed while this ran; {remedy}run again, as"
    ):
        recorded.check()


@pytest.mark.parametrize(
    "change",
    [
        lambda: None,
        lambda: set_to("workers: 0", "workers: 4"),
        lambda: set_to("epochs: 20", "epochs:   20  # of each"),
        lambda: Path("Weights/new.pth").touch(),
        lambda: Path("Image/new.jpg").touch(),
        lambda: Path("dataset/Image/.DS_Store").touch(),
        lambda: Path("dataset/Image/Thumbs.db").touch(),
        lambda: Path("carseg/sample/paint.pyc").touch(),
        lambda: Path("dvc.yaml").write_text(""),
    ],
)
def test_what_changes_no_result_may_change(change: Callable[[], object]) -> None:
    recorded = Recorded("train_bce")
    change()
    recorded.check()


def test_what_is_set_back_was_not_changed() -> None:
    recorded = Recorded("train_bce")
    set_to("epochs: 20", "epochs: 5")
    set_to("epochs: 5", "epochs: 20")
    recorded.check()


def test_each_stage_has_its_own() -> None:
    recorded = Recorded("evaluate")
    set_to("epochs: 20", "epochs: 5")
    recorded.check()
    MODULE.write_text("other")
    with pytest.raises(CarsegError, match=r"^carseg/train\.py: was changed"):
        recorded.check()


def test_without_a_pipeline_or_a_stage_nothing_is_recorded() -> None:
    unknown = Recorded("unknown")
    Path("dvc.yaml").unlink()
    recorded = Recorded("train_bce")
    set_to("epochs: 20", "epochs: 5")
    MODULE.write_text("other")
    assert recorded.code == unknown.code == {}
    recorded.check()
    unknown.check()


def test_parameters_that_are_not_there_are_recorded_as_such() -> None:
    Path("params.yaml").unlink()
    recorded = Recorded("train_bce")
    recorded.check()
    Path("params.yaml").write_text(PARAMS)
    with pytest.raises(CarsegError, match=r"^params\.yaml: epochs was changed"):
        recorded.check()


WORK = {
    "dataset": "dataset.snapshot",
    "split": "split.split",
    "weights": "official.provide",
    "renderings": "renderings.provide",
    "train_bce": "train.train_bce",
    "train_dice": "train.train_dice",
    "evaluate": "evaluate.evaluate",
}


@pytest.mark.parametrize("stage", WORK)
def test_every_stage_checks_what_is_recorded_of_it(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    code = Path(f"stages/{stage}.py")
    code.write_text("pass")

    def work(*given: object) -> list[object]:
        code.write_text("other")
        for each in given:
            if isinstance(each, Recorded):
                each.check()
        return []

    monkeypatch.setattr(f"carseg.{WORK[stage]}", work)
    with pytest.raises(CarsegError, match=rf"^stages/{stage}\.py: was changed"):
        import_module(f"stages.{stage}").main()
