"""What a training sees: each photo once an epoch, in another order and another variation."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from conftest import ellipse, write_manifests
from numpy.typing import NDArray

from carseg import data
from carseg.augment import Augment
from carseg.data import (
    P_BEHIND,
    P_CAMOUFLAGE,
    P_CROP,
    P_ELSEWHERE,
    P_RECOLOUR,
    EpochSampler,
    Samples,
)
from carseg.pairs import Pair, read_manifest
from carseg.processes import Processes
from carseg.squares import Squares
from carseg.store import scratch_folder
from carseg.tensors import MEAN, STD


@pytest.fixture(autouse=True)
def _project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write_manifests(tmp_path, train=3, val=2)


def samples_of(pairs: Sequence[Pair], seed: int = 0, scenes: bool = True) -> Samples:
    return Samples(Squares(pairs, 64, Path()), seed, scenes)


def test_every_photo_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(20, seed=1)
    orders = []
    for epoch in (1, 2, 1):
        sampler.epoch = epoch
        indices = list(sampler)
        assert {at for at, _ in indices} == {epoch}
        assert sorted(i for _, i in indices) == list(range(20))
        orders.append([i for _, i in indices])
    assert orders[0] == orders[2] != orders[1]
    other = EpochSampler(20, seed=2)
    other.epoch = 1
    assert [i for _, i in other] != orders[0]
    assert len(sampler) == 20


def test_no_look_is_drawn_from_what_the_order_is_drawn_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = samples_of(read_manifest(Path("split/train.csv")), seed=7)
    sampler = EpochSampler(len(samples), seed=7)
    seeds = []
    default_rng = np.random.default_rng

    def generator(seed: int | list[int]) -> np.random.Generator:
        if isinstance(seed, list):
            seeds.append(tuple(np.random.SeedSequence(seed).generate_state(4)))
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", generator)
    for epoch in (0, 1, 2):
        sampler.epoch = epoch
        for index in sampler:
            _ = samples[index]
    assert len(seeds) == len(set(seeds)) == 3 * (1 + len(samples))


def test_a_look_depends_on_seed_epoch_and_photo_alone() -> None:
    pairs = read_manifest(Path("split/train.csv"))
    samples, again = samples_of(pairs, seed=1), samples_of(pairs, seed=1)
    photo, mask = samples[4, 2]
    assert (photo.shape, mask.shape) == ((3, 64, 64), (1, 64, 64))
    _ = again[0, 0]
    assert torch.equal(again[4, 2][0], photo)
    assert torch.equal(again[4, 2][1], mask)
    # A single look may be left as it is; a handful of them is not.
    assert not same_looks(samples, 4, samples, 5)
    assert not same_looks(samples, 4, samples_of(pairs, seed=2), 4)
    # The same picture twice is still turned differently.
    double = samples_of([pairs[0]] * 2, seed=1)
    assert any(not torch.equal(double[epoch, 0][0], double[epoch, 1][0]) for epoch in range(4))


def test_a_process_that_is_spawned_makes_the_same_samples() -> None:
    """As on macOS and Windows, and from Python 3.14 on everywhere."""
    samples = samples_of(read_manifest(Path("split/train.csv")))
    sent = pickle.loads(pickle.dumps(samples))
    for here, there in zip(samples[2, 1], sent[2, 1], strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("scenes", [True, False])
def test_every_sample_is_augmented_and_recoloured_in_its_own_way(
    scenes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def augment(_: Augment, photo: Any, mask: Any, seed: int) -> Any:
        seeds.append(seed)
        return photo, mask

    monkeypatch.setattr(Augment, "__call__", augment)
    monkeypatch.setattr(Augment, "recolour", lambda *given: augment(*given)[0])
    monkeypatch.setattr(data, "P_RECOLOUR", 1)
    pairs = read_manifest(Path("split/train.csv"))
    for seed in (1, 2):
        samples = samples_of(pairs, seed, scenes)
        for epoch in range(4):
            for i in range(len(samples)):
                _ = samples[epoch, i]
    assert len(seeds) == len(set(seeds)) == 2 * 4 * len(pairs) * (1 + scenes)


def test_a_photo_alone_trains_without_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("P_ELSEWHERE", "P_BEHIND", "P_RECOLOUR", "P_CAMOUFLAGE", "P_CROP"):
        monkeypatch.setattr(data, name, 1)
    samples = samples_of(read_manifest(Path("split/train.csv"))[:1])
    for epoch in range(3):
        photo, mask = samples[epoch, 0]
        assert photo.isfinite().all()
        assert 0 <= mask.min() < mask.max() <= 1


def test_looks_that_are_not_staged_are_photos_turned_and_shaded_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Augment, "__call__", lambda _, photo, mask, seed: (photo, mask))
    monkeypatch.setattr("carseg.data.P_CROP", 0)
    pairs = read_manifest(Path("split/train.csv"))
    plain, scenes = samples_of(pairs, scenes=False), samples_of(pairs)
    for i, (photo, mask) in enumerate(Squares(pairs, 64, Path())):
        for epoch in range(8):
            assert torch.equal(plain[epoch, i][0], photo)
            assert torch.equal(scenes[epoch, i][1], mask)
        assert any(not torch.equal(scenes[epoch, i][0], photo) for epoch in range(8))


def test_a_share_of_samples_is_cropped_to_the_car(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Augment, "__call__", lambda _, photo, mask, seed: (photo, mask))
    monkeypatch.setattr(data, "crop_to_car", lambda photo, mask, _: (photo, 0 * mask))
    for scenes, share in ((True, P_CROP), (False, 0)):
        samples = samples_of(read_manifest(Path("split/train.csv")), scenes=scenes)
        cropped = [not samples[epoch, 0][1].any() for epoch in range(300)]
        assert np.mean(cropped) == pytest.approx(share, abs=0.08 if share else 0)


@pytest.mark.parametrize("scenes", [True, False])
def test_photo_and_mask_are_cropped_and_moved_together(
    scenes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("P_ELSEWHERE", "P_BEHIND", "P_RECOLOUR", "P_CAMOUFLAGE", "P_CROP"):
        monkeypatch.setattr(data, name, int(name == "P_CROP"))
    car = np.where(ellipse(64, 64, seed=1), 255, 0).astype(np.uint8)
    monkeypatch.setattr(Squares, "arrays", lambda *_: (np.dstack([car] * 3), car))
    samples = samples_of(read_manifest(Path("split/train.csv")), scenes=scenes)
    samples._augment._compose = A.Compose(samples._augment._compose.transforms[:2])
    moved = 0.0
    for epoch in range(6):
        photo, mask = samples[epoch, 0]
        shown, said = photo[2] * STD[2] + MEAN[2] > 0.7, mask[0] > 0.7
        assert (shown != said).float().mean() < 0.01
        moved = max(moved, float((shown != torch.from_numpy(car > 0)).float().mean()))
    assert moved > 0.05


def test_a_staged_look_has_the_car_of_its_mask_and_what_others_have_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each photo has a colour of its own."""
    monkeypatch.setattr("carseg.data.P_RECOLOUR", 0)
    pairs = read_manifest(Path("split/train.csv"))
    squares = Squares(pairs, 64, Path())
    samples = Samples(squares)
    for i in range(len(squares)):
        photo, mask = squares.arrays(i)
        looks = [samples._vary_scene(i, photo, mask, np.random.default_rng(k)) for k in range(40)]
        assert all(np.array_equal(look[mask == 255], photo[mask == 255]) for look in looks)
        others = {samples._other(i, np.random.default_rng(k))[0].tobytes() for k in range(40)}
        assert others == {squares.arrays(k)[0].tobytes() for k in range(len(squares)) if k != i}


def test_every_way_of_staging_is_drawn_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"put_elsewhere": P_ELSEWHERE, "put_behind": P_BEHIND, "recolour": P_RECOLOUR}
    shares["camouflage"] = P_CAMOUFLAGE
    chosen: list[set[str]] = []

    def told(name: str) -> Callable[..., NDArray[np.uint8]]:
        def call(*arguments: NDArray[np.uint8]) -> NDArray[np.uint8]:
            chosen[-1].add(name)
            return arguments[0]

        return call

    for name in ("put_elsewhere", "put_behind", "camouflage"):
        monkeypatch.setattr(data, name, told(name))
    squares = Squares(read_manifest(Path("split/train.csv")), 64, Path())
    samples = Samples(squares)
    monkeypatch.setattr(samples._augment, "recolour", told("recolour"))
    photo, mask = squares.arrays(0)
    for k in range(400):
        chosen.append(set())
        samples._vary_scene(0, photo, mask, np.random.default_rng(k))
    for one, share in shares.items():
        assert np.mean([one in names for names in chosen]) == pytest.approx(share, abs=0.08)
        for other in shares.keys() - {one}:
            among = [one in names for names in chosen if other in names]
            assert np.mean(among) == pytest.approx(share, abs=0.15), f"{one} goes by {other}"


def same_looks(one: Samples, epoch: int, other: Samples, other_epoch: int) -> bool:
    return all(torch.equal(one[epoch, i][0], other[other_epoch, i][0]) for i in range(len(one)))


class OnSecondMachine(Processes):
    """One of two processes, on a machine of its own, which does not see the other's files."""

    def all_gather(self, share: Sequence[Any]) -> list[Any]:
        return [None, *share]


def test_a_machine_reads_the_squares_that_it_wrote() -> None:
    pairs = read_manifest(Path("split/train.csv"))
    second = OnSecondMachine(rank=1, world_size=2, local_rank=0, local_world_size=1)
    with scratch_folder(second) as folder:
        found = list(Squares(pairs, 64, folder, second))
        assert any(folder.iterdir())
    assert not folder.exists()
    for one, other in zip(found, Squares(pairs, 64, Path()), strict=True):
        assert all(map(torch.equal, one, other))
