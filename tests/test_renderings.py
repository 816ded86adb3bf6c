"""Rendered pairs that train along: repeatable, other than the sample, and replaced as a whole."""

from pathlib import Path

import numpy as np
import pytest

from carseg import renderings
from carseg.errors import CarsegError
from carseg.pairs import read_manifest
from carseg.params import Params
from carseg.renderings import SEED, provide
from carseg.sample.layout import draw_plan

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


@pytest.mark.parametrize("index", range(20))
def test_they_show_other_cars_than_the_sample(index: int) -> None:
    """Else a run on the sample would train on cars that it validates on, from the same side."""
    plans = [draw_plan(np.random.default_rng([s, index]), s, index) for s in (42, SEED)]
    assert plans[0].shape.name != plans[1].shape.name


def test_a_renderer_that_is_killed_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise CarsegError("the sample: a process was killed")

    monkeypatch.setattr(renderings, "render_sample", killed)
    with pytest.raises(CarsegError, match=r"^renderings: a process .*; free some, or lower render"):
        provide(2, FOLDER)
    assert not FOLDER.exists()


def test_by_default_there_are_none() -> None:
    assert Params().renderings == 0
