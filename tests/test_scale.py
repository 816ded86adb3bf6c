"""The benchmark of time and memory as the data grows."""

import sys
from pathlib import Path

import psutil
import pytest

from benchmarks import scale
from carseg.pairs import find_pairs
from carseg.params import Params


def test_a_few_photos_get_as_many_names_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "KINDS", 3)
    for count, different in ((2, 2), (7, 3)):
        project = tmp_path / str(count)
        for folder in ("Image", "Mask"):
            (project / folder).mkdir(parents=True)
        scale.write_pairs(project, count)
        pairs = find_pairs(project / "Image", project / "Mask")
        assert len({pair.name for pair in pairs}) == len(pairs) == count
        assert len({pair.photo.read_bytes() for pair in pairs}) == different


def test_the_configuration_is_one_of_the_pipeline() -> None:
    Params.model_validate(scale.SETTINGS)


def test_seconds_and_peaks_are_those_of_stages_and_of_dvc(tmp_path: Path) -> None:
    stage = "import time; len(b'x' * 60_000_000); time.sleep(0.5)"  # the peak is over soon
    words = [sys.executable, "-c", stage, "stages.split"]
    dvc = [sys.executable, "-c", f"import subprocess; subprocess.run({words})"]
    project = tmp_path / "project"
    project.mkdir()
    seconds, peaks = scale.watch(dvc, project)
    assert list(seconds) == ["split"]
    assert seconds["split"] > 0
    assert 0 < peaks["dvc"] < 60 < peaks["split"]


def test_a_command_that_fails_ends_with_its_output(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    with pytest.raises(SystemExit, match="no such stage"):
        scale.watch([sys.executable, "-c", "raise SystemExit('no such stage')"], project)


def test_a_process_that_has_just_ended_takes_nothing() -> None:
    process = psutil.Popen([sys.executable, "-c", ""])
    process.wait()
    assert scale.look(process) == ("dvc", 0.0)
