"""Which pairs train and which validate."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from sklearn.model_selection import KFold, train_test_split

from carseg.errors import CarsegError, named
from carseg.files import new_directory, write_csv
from carseg.pairs import Pair, find_pairs
from carseg.params import Params, Split

in_one_spelling = partial(unicodedata.normalize, "NFC")  # file systems differ in that of accents


def split(params: Params) -> None:
    """Write the manifests of the pairs in `dataset/` into `split/`.

    Raises:
        CarsegError: a photo or mask without the other, or as `split_names`.
    """
    pairs = find_pairs(Path("dataset/Image"), Path("dataset/Mask"))
    write_split(pairs, params.split, params.seed, Path("split"))


def split_names(names: Sequence[str], settings: Split, seed: int) -> tuple[list[str], list[str]]:
    """Divide names into training and validation, each sorted.

    Without a fold, `val_size` names are drawn at random. With fold k, the names are shuffled and
    cut into `fold_count` disjoint folds, and the k-th validates: all folds together
    validate on every name once.

    Raises:
        CarsegError: too few names for `val_size`, or no such fold.
    """
    names = sorted(names, key=in_one_spelling)
    if settings.val_size >= len(names):
        raise CarsegError(
            f"params.yaml: split.val_size is {settings.val_size} but there are {len(names)} "
            "pairs; lower it or add pairs, one at least must be left to train on"
        )
    if settings.fold is None:
        train, val = train_test_split(names, test_size=settings.val_size, random_state=seed)
        return sorted(train, key=in_one_spelling), sorted(val, key=in_one_spelling)
    folds = fold_count(len(names), settings)
    if settings.fold >= folds:
        raise CarsegError(
            f"params.yaml: split.fold is {settings.fold} but {len(names)} pairs make {folds} "
            f"folds; it must be null or a whole number from 0 to {folds - 1}"
        )
    cuts = KFold(folds, shuffle=True, random_state=seed).split(names)
    # Up to the one that is wanted, as each takes memory.
    train_at, val_at = next(islice(cuts, settings.fold, None))
    return [names[i] for i in train_at], [names[i] for i in val_at]


def fold_count(pairs: int, settings: Split) -> int:
    """Return the number of disjoint folds of about `val_size` pairs, two at least."""
    return max(2, round(pairs / settings.val_size))


def write_split(pairs: Sequence[Pair], settings: Split, seed: int, folder: Path) -> None:
    """Write the manifests `train.csv` and `val.csv`, with the columns photo and mask.

    Raises:
        CarsegError: as `split_names`.
    """
    pair_of = {pair.name: pair for pair in pairs}
    train, val = split_names(list(pair_of), settings, seed)
    with new_directory(folder) as fresh:  # both at once, as no photo may be in both
        for part, names in (("train", train), ("val", val)):
            write_csv(fresh / f"{part}.csv", ("photo", "mask"), (pair_of[name] for name in names))
    print(f"split: {len(train)} pairs train, {len(val)} validate: {named(val)}")
