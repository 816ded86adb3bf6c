"""Where the user's files are while DVC runs an experiment in a copy of the project."""

from collections.abc import Callable
from pathlib import Path

import pytest

from carseg.home import at_home, home_of


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_outside_of_a_copy_files_are_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert home_of(Path()) is None
    assert at_home(Path("a.jpg")) == Path("a.jpg")
    monkeypatch.setenv("DVC_ROOT", str(Path().absolute()))  # as DVC sets it for every stage
    assert home_of(Path()) is None
    monkeypatch.setenv("DVC_ROOT", str(Path("other").absolute()))
    assert home_of(Path()) is None


def test_a_copys_home_is_the_project_that_it_is_of(elsewhere: Callable[[str], Path]) -> None:
    folder = elsewhere("Image")
    assert home_of(Path()) == folder.parent
    assert at_home(Path("Image")) == folder


def test_dvcs_temporary_folder_may_be_on_another_disk(
    elsewhere: Callable[[str], Path], tmp_path: Path
) -> None:
    home = elsewhere("Image").parent
    (home / ".dvc/tmp").rename(tmp_path / "disk")
    (home / ".dvc/tmp").symlink_to(tmp_path / "disk")
    assert home_of(home / ".dvc/tmp/exps/copy") == home
