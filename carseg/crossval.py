"""Cross-validation: each photo is judged by nets that have not seen it, a fold an experiment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from dvc.utils.hydra import to_hydra_overrides
from hydra.errors import HydraException

from carseg.errors import CarsegError
from carseg.files import parse_csv, write_csv, write_json
from carseg.pairs import find_pairs
from carseg.params import load_params
from carseg.split import fold_count
from carseg.spread import WORST, spread

DVC = (sys.executable, "-m", "dvc")
NAME = "crossval-fold-{}"
SCORES = "plots/scores.csv"
NETS = ("untrained", "bce", "dice")
VIEWS = ("plain", "closer", "d4", "d4_closer")
TURNS = {
    "plain": ("plain_iou", "turn90_iou", "turn180_iou", "turn270_iou"),
    "closer": tuple(f"closer_{name}iou" for name in ("", "turn90_", "turn180_", "turn270_")),
}
FIXED = {
    "keep": "is always last here, so that no photo chooses the weights that it judges",
    "patience": "is always null here, so that no photo chooses when its training ends",
    "split.fold": "takes every value here",
    "split.val_size": "is read from params.yaml here",
}

Row = dict[str, str]  # of plots/scores.csv, a photo


def crossval(overrides: Sequence[str], folder: Path) -> None:
    """Run every fold through DVC's queue, then write and print the scores of all photos.

    A fold that has been run before comes out of DVC's cache, so an interrupted call goes on
    where it was. The last of all epochs is kept, not the best one: a photo must not choose the
    weights that it judges.

    Args:
        overrides: parameters for this run, `name=value` each.
        folder: gets `scores.csv`, a row a photo, and `summary.json`.

    Raises:
        CarsegError: an override of `FIXED` or with several values, a project without a git commit,
            a fold that did not run to its end, or photos that came or went meanwhile.
    """
    for change in overrides:
        # DVC takes params.yaml:NAME and +NAME, too.
        if (name := change.split("=")[0].rpartition(":")[2].lstrip("+~")) in FIXED:
            raise CarsegError(f"--set-param {change}: {name} {FIXED[name]}; leave it out")
        if _has_several_values(change):
            raise CarsegError(f"--set-param {change}: has several values; take one after the other")
    run_dvc("repro", "dataset")  # renders the sample where there are no photos
    pairs = find_pairs(Path("dataset/Image"), Path("dataset/Mask"))
    names = [NAME.format(k) for k in range(fold_count(len(pairs), load_params().split))]
    head = git("rev-parse", "HEAD")
    refs = [f"refs/exps/{head[:2]}/{head[2:]}/{name}" for name in names]
    for name, ref in zip(names, refs, strict=True):
        git("update-ref", "-d", ref)
        # Still queued by a call that was interrupted; an error says that it is not.
        subprocess.run([*DVC, "queue", "remove", name], capture_output=True)
    for k, name in enumerate(names):
        changes = [*overrides, "keep=last", "patience=null", f"split.fold={k}"]
        chosen = [word for change in changes for word in ("--set-param", change)]
        run_dvc("exp", "run", "--queue", "--name", name, *chosen)
    run_dvc("exp", "run", "--run-all")
    rows = [row for name, ref in zip(names, refs, strict=True) for row in scores(name, ref)]
    if sorted(row["photo"] for row in rows) != sorted(pair.name for pair in pairs):
        raise CarsegError("Image, Mask: were changed while folds ran; run carseg crossval again")
    report(rows, folder)


def _has_several_values(change: str) -> bool:
    try:
        return any(setting.is_sweep_override() for setting in to_hydra_overrides([change]))
    except HydraException as error:
        raise CarsegError(f"--set-param {change}: is not NAME=VALUE as DVC reads it") from error


def scores(name: str, ref: str) -> list[Row]:
    """Read the scores of one fold's experiment.

    Raises:
        CarsegError: there is none.
    """
    try:
        return parse_csv(git("show", f"{ref}:{SCORES}"))
    except CarsegError as error:
        raise CarsegError(f"{name}: did not run to its end; see dvc queue logs {name}") from error


def report(rows: Sequence[Row], folder: Path) -> None:
    """Write the rows of all folds and their summary, and print it."""
    rows = sorted(rows, key=lambda row: row["photo"])
    write_csv(folder / "scores.csv", list(rows[0]), [list(row.values()) for row in rows])
    summary = {
        net: {
            view: {
                score: spread(
                    [float(row[f"{net}_{view}_{score}"]) for row in rows], worst
                )._asdict()
                for score, worst in WORST.items()
            }
            for view in VIEWS
        }
        for net in NETS
    }
    by_side = {net: {view: sides(rows, net, view) for view in TURNS} for net in NETS}
    write_json(folder / "summary.json", {"photos": len(rows), **summary, "iou_by_side": by_side})
    print(f"\n{len(rows)} photos, each judged by nets that have not seen it")
    print(f"{'IoU':<20}{'mean':>9}{'std':>9}{'95 % interval':>20}{'worst':>9}")
    for net in NETS:
        for view in VIEWS:
            s = spread([float(row[f"{net}_{view}_iou"]) for row in rows], min)
            interval = f"{s.low:.4f} to {s.high:.4f}"
            print(f"{f'{net} {view}':<20}{s.mean:>9.4f}{s.std:>9.4f}{interval:>20}{s.worst:>9.4f}")
    print("each photo at all four turns:")
    for net, views in by_side.items():
        for view, means in views.items():
            line = "".join(f"   {side} {mean:.4f}" for side, mean in means.items())
            print(f"{f'{net} {view}':<20}{line}")
    print(f"{folder}/scores.csv has every photo, {folder}/summary.json every score")


def sides(rows: Sequence[Row], net: str, view: str) -> dict[str, float]:
    """Give the mean IoU of cars that stand and of cars that lie on their side.

    Each photo counts at all its four turns, so both means are over the same cars.
    """
    found: dict[str, list[float]] = {"standing": [], "lying": []}
    for row in rows:
        for turn, column in enumerate(TURNS[view]):
            lying = int(row["lying"]) != turn % 2
            found["lying" if lying else "standing"].append(float(row[f"{net}_{column}"]))
    return {side: round(float(np.mean(ious)), 6) for side, ious in found.items()}


def run_dvc(*arguments: str) -> None:
    """Run DVC, its output shown as it comes.

    Raises:
        CarsegError: it failed.
    """
    done = subprocess.run([*DVC, *arguments])
    if done.returncode:
        raise CarsegError(f"dvc {' '.join(arguments)} failed; its message is above")


def git(*arguments: str) -> str:
    """Run git and give what it prints.

    Raises:
        CarsegError: it failed.
    """
    done = subprocess.run(["git", *arguments], capture_output=True)
    if done.returncode:
        raise CarsegError(f"git {' '.join(arguments)}: {done.stderr.decode().strip()}")
    return done.stdout.decode().strip("\n")
