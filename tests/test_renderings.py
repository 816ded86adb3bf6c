"""Rendered pairs that train along: repeatable, other than the sample, and replaced as a whole."""

from pathlib import Path

import numpy as np
import pytest
from conftest import contents

from carseg import renderings
from carseg.errors import CarsegError
from carseg.pairs import read_manifest
from carseg.renderings import SEED, provide
from carseg.sample.layout import Plan, draw_plan

FOLDER = Path("renderings")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(renderings, "LONG_SIDE", 96)
    monkeypatch.chdir(tmp_path)


def test_the_manifest_names_every_pair_and_the_same_count_gives_the_same() -> None:
    provide(2, FOLDER)
    before = contents(FOLDER)
    pairs = read_manifest(FOLDER / "pairs.csv")
    named = [Path(file).relative_to(FOLDER).as_posix() for pair in pairs for file in pair]
    assert {*named, "pairs.csv"} == set(before)
    assert len(pairs) == 2
    provide(2, FOLDER)
    assert contents(FOLDER) == before


def test_fewer_replace_more_and_none_is_no_error() -> None:
    provide(2, FOLDER)
    provide(1, FOLDER)
    assert len(contents(FOLDER)) == 3
    provide(0, FOLDER)
    assert contents(FOLDER) == {"pairs.csv": b"photo,mask\n"}


def plans(seed: int, count: int) -> list[Plan]:
    return [draw_plan(np.random.default_rng([seed, k]), seed, k) for k in range(count)]


def side(plan: Plan) -> float:
    """Where the camera stands, in degrees around the car."""
    return float(np.degrees(plan.camera - plan.heading)) - 90


def test_the_first_twenty_show_other_cars_than_the_sample_or_from_another_side() -> None:
    """Else a run on the sample would train on pictures like those that it validates on."""
    for rendered in plans(SEED, 20):
        for other in plans(42, 20):
            between = abs((side(rendered) - side(other) + 180) % 360 - 180)
            assert rendered.shape.name != other.shape.name or between > 25


def test_many_combine_bodies_paints_sides_and_turns_freely() -> None:
    """Taking turns in step, a side would always show in one paint, and always lie, or never."""
    many = [plan for plan in plans(SEED, 400) if not plan.portrait]
    bodies = {(plan.shape.name, tuple(plan.finish.paint)) for plan in many}
    assert len(bodies) > 0.8 * 7 * 12
    from_the_left = [plan for plan in many if abs((side(plan) % 360) - 90) < 8]
    assert 0.3 < np.mean([plan.quarter_turns > 0 for plan in from_the_left]) < 0.7
    assert len({tuple(plan.finish.paint) for plan in from_the_left}) > 6


def test_a_renderer_that_is_killed_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise CarsegError("the sample: a process was killed")

    monkeypatch.setattr(renderings, "render_sample", killed)
    with pytest.raises(CarsegError, match=r"^renderings: a process .*; free some, or set render"):
        provide(2, FOLDER)
    assert not FOLDER.exists()
