"""The benchmark of what `dvc repro` spends its time on."""

import functools
import json
import os
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import write_pairs
from project import ROOT, Project

from benchmarks import share
from carseg.errors import run
from carseg.params import load_params


def test_a_timed_function_does_as_before_and_adds_its_seconds() -> None:
    class Sleeper:
        def sleep(self, seconds: float) -> str:
            time.sleep(seconds)
            return "rested"

    module, steps = SimpleNamespace(Sleeper=Sleeper, fail=lambda: 1 / 0), [0.0]
    share.clock(module, "Sleeper.sleep", steps)
    share.clock(module, "fail", steps)
    began = time.perf_counter()
    assert [Sleeper().sleep(0.02) for _ in range(2)] == ["rested"] * 2
    assert 0.04 <= steps[0] <= time.perf_counter() - began
    before = steps[0]
    with pytest.raises(ZeroDivisionError):
        module.fail()
    assert steps[0] > before


def test_all_steps_that_are_timed_are_there() -> None:
    for module, names in share.STEPS.items():
        for name in names:
            assert callable(functools.reduce(getattr, name.split("."), import_module(module)))
    assert set(share.IMPORTED) == {path.stem for path in Path(ROOT, "stages").glob("*.py")}
    for stage, module in share.IMPORTED.items():
        assert f"from {module} import" in Path(ROOT, "stages", f"{stage}.py").read_text()


def test_a_stage_runs_and_writes_its_times_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 4)
    Path("params.yaml").write_text(yaml.safe_dump({"split": {"val_size": 1, "fold": None}}))
    monkeypatch.setenv(share.TIMES, "times")
    monkeypatch.setattr(share, "STEPS", {})  # which would stay clocked for later tests
    monkeypatch.setattr(sys, "argv", ["share", "-m", "stages.split"])
    share.main()
    assert Path("split/val.csv").is_file()
    times = json.loads(Path("times").read_text())
    assert times.pop("stage") == "split"
    assert times.pop("steps") == 0, "a split has none"
    assert times.pop("rest") > 0
    assert times.pop("imports") > 0
    assert not times


@pytest.fixture
def _at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where a benchmark is started, and cloned from


@pytest.mark.usefixtures("_at_the_top")
def test_settings_are_changed(tmp_path: Path) -> None:
    changes = ["epochs=2", "split.val_size=3", "learning_rate=1e-5"]
    project = share.prepare(tmp_path, None, None, changes)
    params = load_params(project / "params.yaml")
    assert (params.epochs, params.split.val_size, params.learning_rate) == (2, 3, 1e-5)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("epocs=2", "Could not override 'epocs'"),
        ("split.size=3", "Could not override 'split.size'"),
        ("spilt.val_size=3", "Could not override 'spilt.val_size'"),
        ("epochs=0", "epochs is 0; it must be a whole number from 1"),
        ("launcher=torchrun", "launcher is torchrun, .*; add -S launcher=python"),
    ],
)
@pytest.mark.usefixtures("_at_the_top")
def test_a_wrong_setting_is_told_of_in_one_line(
    change: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["share", "-S", change])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit, match=rf"^carseg: [^\n]*{fault}[^\n]*$"):
        run(share.main)


def test_a_project_without_results_and_with_folders_among_weights_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    (source / "Weights/older").mkdir(parents=True)
    for name in (".dvc", "Image", "Mask"):
        (source / name).mkdir()
        (source / name / ".gitkeep").touch()
    (source / "dvc.lock").write_text("of an earlier run")
    cars = tmp_path / "cars"
    write_pairs(cars / "Image", cars / "Mask", 1)
    (source / "params.yaml").write_text("epochs: 1\n")
    (source / "Weights/README.md").touch()
    repository = Project.at(source)
    repository.git("init", "--quiet")
    repository.commit("start")
    (source / "Weights/mine.pth").touch()
    monkeypatch.chdir(source)
    project = share.prepare(tmp_path, cars / "Image", cars / "Mask", [])
    assert sorted(path.name for path in (project / "Weights").iterdir()) == [
        "README.md", "mine.pth"
    ]  # fmt: skip
    for path in ("Image/0.jpg", "Mask/0.png"):
        assert (project / path).read_bytes() == (cars / path).read_bytes()
    assert not (project / "dvc.lock").exists()
    assert "dir = cache" in (project / ".dvc/config.local").read_text(), "the user's may be shared"
    assert os.access(tmp_path / "python", os.X_OK)


def test_the_share_is_of_what_is_not_imports() -> None:
    times = [
        {"stage": "split", "imports": 0.0, "steps": 0.0, "rest": 1.0},
        {"stage": "evaluate", "imports": 20.0, "steps": 90.0, "rest": 4.0},
    ]
    lines = share.table(120.0, times).splitlines()
    assert lines[-2].split() == ["DVC,", "Python", "5.0"]
    assert lines[-1] == "120 s in all; 10.0% of them, less imports, outside of steps"
