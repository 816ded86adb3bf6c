"""Rendered pairs that train along: repeatable, other than the sample, and replaced as a whole."""

from pathlib import Path

import pytest

from carseg import renderings
from carseg.pairs import read_manifest
from carseg.params import Params
from carseg.renderings import provide
from carseg.sample import render_sample

FOLDER = Path("renderings")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(renderings, "LONG_SIDE", 96)
    monkeypatch.chdir(tmp_path)


def files() -> dict[str, bytes]:
    found = [path for path in FOLDER.rglob("*") if path.is_file()]
    return {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in found}


def test_the_manifest_names_every_pair_and_the_same_count_gives_the_same() -> None:
    provide(2, FOLDER)
    before = files()
    pairs = read_manifest(FOLDER / "pairs.csv")
    named = [Path(file).relative_to(FOLDER).as_posix() for pair in pairs for file in pair]
    assert {*named, "pairs.csv"} == set(before)
    assert len(pairs) == 2
    provide(2, FOLDER)
    assert files() == before


def test_fewer_replace_more_and_none_is_no_error() -> None:
    provide(2, FOLDER)
    provide(1, FOLDER)
    assert len(files()) == 3
    provide(0, FOLDER)
    assert files() == {"pairs.csv": b"photo,mask\n"}


def test_they_are_other_pictures_than_the_sample() -> None:
    """Else a run on the sample would train on photos that it validates on."""
    for name in ("Image", "Mask"):
        Path(name).mkdir()
    render_sample(Path("Image"), Path("Mask"), count=2, long_side=96)
    provide(2, FOLDER)
    sample = {path.read_bytes() for path in Path("Image").iterdir()}
    assert not sample & set(files().values())


def test_by_default_there_are_none() -> None:
    assert Params().renderings == 0
