"""Which pairs train and which validate: the plan's split, and manifests for any name."""

import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from conftest import contents, write_pairs
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from carseg.errors import CarsegError
from carseg.pairs import Pair, read_manifest
from carseg.params import Params, Split
from carseg.split import fold_count, split, split_names, write_split
from stages import split as stage

NAMES = [f"{i:02d}" for i in range(1, 21)]
LISTS = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=30, unique=True)


def pair(name: str) -> Pair:
    return Pair(f"dataset/Image/{name}.jpg", f"dataset/Mask/{name}.png")


def test_twenty_pairs_are_split_as_the_plan_has_it() -> None:
    train, val = split_names(NAMES, Split(val_size=5), seed=42)
    expected = train_test_split(sorted(NAMES), test_size=5, random_state=42)
    assert [train, val] == [sorted(part) for part in expected]
    # Written out, so that another version of the library that draws anew would show.
    assert val == ["01", "02", "09", "16", "18"]


@given(LISTS, st.data())
def test_a_hold_out_is_complete_disjoint_and_blind_to_order(
    names: list[str], data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(names) - 1))
    train, val = split_names(names, Split(val_size=size), seed=7)
    assert len(val) == size
    assert sorted(train + val) == sorted(names)
    assert (train, val) == (sorted(train), sorted(val))
    shuffled = data.draw(st.permutations(names))
    assert split_names(shuffled, Split(val_size=size), seed=7) == (train, val)


@given(LISTS, st.data())
def test_folds_validate_every_name_once(names: list[str], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(names) - 1))
    folds = max(2, round(len(names) / size))
    shuffled = data.draw(st.permutations(names))
    validated = []
    for fold in range(folds):
        train, val = split_names(names, Split(val_size=size, fold=fold), seed=7)
        assert sorted(train + val) == sorted(names)
        assert (train, val) == (sorted(train), sorted(val))
        assert split_names(shuffled, Split(val_size=size, fold=fold), seed=7) == (train, val)
        validated += val
    assert sorted(validated) == sorted(names)
    with pytest.raises(CarsegError, match=rf"split\.fold .* from 0 to {folds - 1}$"):
        split_names(names, Split(val_size=size, fold=folds), seed=7)


def test_folds_hold_as_many_as_asked_for() -> None:
    assert {
        len(split_names(NAMES, Split(val_size=5, fold=fold), seed=42)[1]) for fold in range(4)
    } == {5}


@pytest.mark.parametrize(("pairs", "folds"), [(14, 3), (19, 4), (12, 2), (7, 2), (6, 2), (23, 5)])
def test_folds_hold_about_as_many_as_asked_for(pairs: int, folds: int) -> None:
    assert fold_count(pairs, Split(val_size=5)) == folds


def test_a_fold_takes_no_more_memory_however_many_there_are() -> None:
    names = [f"{i:05}" for i in range(20_000)]
    peaks = []
    for size in (5_000, 5):
        tracemalloc.start()
        split_names(names, Split(val_size=size, fold=1), 42)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]


@pytest.mark.parametrize("fold", [None, 0])
def test_the_seed_decides(fold: int | None) -> None:
    settings = Split(val_size=5, fold=fold)
    drawn = {tuple(split_names(NAMES, settings, seed)[1]) for seed in range(8)}
    assert len(drawn) > 5
    assert split_names(NAMES, settings, 3) == split_names(NAMES, settings, 3)


@pytest.mark.parametrize("size", [20, 21, 1000])
@pytest.mark.parametrize("fold", [None, 0])
def test_one_pair_at_least_must_be_left_to_train_on(size: int, fold: int | None) -> None:
    with pytest.raises(CarsegError, match=rf"params\.yaml: split\.val_size is {size} .* 20 pairs"):
        split_names(NAMES, Split(val_size=size, fold=fold), seed=42)


def test_accents_in_either_spelling_give_one_split() -> None:
    names = ["zebra", "eta", "\u00e9te", "a", "f", "fa"]
    one, other = (
        split_names([unicodedata.normalize(form, name) for name in names], Split(val_size=2), 42)
        for form in ("NFC", "NFD")
    )
    assert [[unicodedata.normalize("NFC", name) for name in part] for part in other] == list(one)


def test_manifests_hold_the_split_and_are_read_back(tmp_path: Path) -> None:
    pairs = [pair(name) for name in NAMES]
    write_split(pairs[::-1], Split(val_size=5), 42, tmp_path)
    train, val = split_names(NAMES, Split(val_size=5), 42)
    assert read_manifest(tmp_path / "train.csv") == [pair(name) for name in train]
    assert read_manifest(tmp_path / "val.csv") == [pair(name) for name in val]
    lines = (tmp_path / "val.csv").read_bytes().decode().split("\n")
    assert lines[:2] == ["photo,mask", "dataset/Image/01.jpg,dataset/Mask/01.png"]


def test_a_split_that_fails_leaves_both_manifests_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [pair(name) for name in NAMES]
    write_split(pairs, Split(val_size=5), 42, tmp_path / "split")
    before = contents(tmp_path)

    def full(path: Path, *_: object) -> None:
        if path.name == "val.csv":
            raise OSError(28, "No space left on device", str(path))
        path.write_text("photo,mask\n")

    monkeypatch.setattr("carseg.split.write_csv", full)
    with pytest.raises(OSError, match="No space left"):
        write_split(pairs, Split(val_size=5), 43, tmp_path / "split")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("size", "more"), [(5, ""), (10, ""), (11, ", …")])
def test_the_counts_and_ten_names_at_most_are_printed(
    size: int, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_split([pair(name) for name in NAMES], Split(val_size=size), 42, tmp_path)
    _, val = split_names(NAMES, Split(val_size=size), 42)
    assert capsys.readouterr().out == (
        f"split: {20 - size} pairs train, {size} validate: {', '.join(val[:10])}{more}\n"
    )


@pytest.mark.parametrize(
    "name",
    ["a,b", 'say "car"', "two\nlines", "one\rreturn", " blank ", "машина", "車 🚗", "a;b\t'c'"],
)
def test_an_odd_name_survives_the_manifest(name: str, tmp_path: Path) -> None:
    pairs = [pair(name), pair("plain")]
    write_split(pairs, Split(val_size=1), 0, tmp_path)
    found = [*read_manifest(tmp_path / "train.csv"), *read_manifest(tmp_path / "val.csv")]
    assert sorted(found) == sorted(pairs)


@pytest.mark.parametrize("content", ["", "photo,mask\n", "image,mask\na.jpg,a.png\n", "photo\na\n"])
def test_a_manifest_without_pairs_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(content)
    with pytest.raises(CarsegError, match=r"train\.csv: expected the columns photo,mask"):
        read_manifest(path)


def test_a_missing_manifest_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CarsegError, match=r"train\.csv: "):
        read_manifest(tmp_path / "train.csv")


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_of_the_parameters_draws_the_split(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 6)
    drawn = [split_names(names, Split(val_size=2), each)[1] for each in (1, 2, 42)]
    assert len(set(map(tuple, drawn))) == 3, "else it would not show"
    split(Params(seed=seed, split=Split(val_size=2)))
    assert [each.name for each in read_manifest(Path("split/val.csv"))] == drawn[seed - 1]


def test_a_split_that_other_settings_would_be_recorded_with_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs(Path("dataset/Image"), Path("dataset/Mask"), 3)
    Path("dvc.yaml").write_text("stages: {split: {params: [seed]}}\n")
    Path("params.yaml").write_text("split: {val_size: 1, fold: null}\nseed: 1\n")
    stage.main()
    assert len(read_manifest(Path("split/train.csv"))) == 2

    def edit(*_: object) -> None:
        Path("params.yaml").write_text("seed: 2\n")

    monkeypatch.setattr("carseg.split.split", edit)
    with pytest.raises(CarsegError, match=r"^params\.yaml: seed was changed while this ran; set"):
        stage.main()
