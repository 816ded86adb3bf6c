"""Cross-validation: each photo is judged by nets that have not seen it, a fold an experiment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from subprocess import DEVNULL
from tempfile import TemporaryDirectory

import numpy as np
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides, to_hydra_overrides
from dvc.utils.serialize import ParseError
from hydra.errors import HydraException

from carseg.columns import LAID, NETS, QUARTERS, VIEWS, view_name
from carseg.errors import CarsegError
from carseg.files import check_writable, parse_csv, write_csv, write_json
from carseg.lock import parse_lock
from carseg.official import suiting
from carseg.pairs import find_pairs
from carseg.params import Params, load_params, parse_params
from carseg.scores import Scores
from carseg.split import fold_count, split_names
from carseg.spread import spreads

DVC = (sys.executable, "-m", "dvc")
NAME = "crossval-fold-{}"
SCORES = "plots/scores.csv"
FIXED = {
    "keep": "is always last here, so that no photo chooses the weights that it judges",
    "patience": "is always null here, so that no photo chooses when its training ends",
    "split": "is set here, a fold at a time",
    "split.fold": "takes every value here",
    "split.val_size": "is read from params.yaml here",
}
ALWAYS = ("keep=last", "patience=null")

NO_COMMIT = ("not a git repository", "Needed a single revision")  # as git says it

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
        CarsegError: an override of `FIXED`, with several values or out of range, a fault in
            params.yaml, a project without a git commit or user, too few pairs, a fold that did not
            run to its end or ran with other parameters, or photos, masks, official weights or code
            that were changed meanwhile; or git or DVC failed.
        OSError: `folder` cannot be written to.
    """
    _check(overrides)
    check_writable(folder)  # now, not when hours have been computed
    load_params()  # tells of faults in params.yaml as the stages do
    changes = [*overrides, *ALWAYS]
    wanted = changed(Path("params.yaml").read_text(encoding="utf-8"), changes)
    if (
        wanted.init == "official"
        and (init := suiting(wanted.model, Path("Weights"))) != wanted.model
    ):
        # Named, as DVC may reuse a result from before that file was there.
        changes.append(f"init={init}")
        wanted = wanted.model_copy(update={"init": init})
    head = _head()
    run_dvc("repro", "dataset")  # renders the sample in a new project without photos
    pairs = find_pairs(Path("dataset/Image"), Path("dataset/Mask"))
    # Too few pairs are told of here, else in the queue by every fold.
    split_names([pair.name for pair in pairs], with_fold(wanted, 0).split, wanted.seed)
    names = [NAME.format(k) for k in range(fold_count(len(pairs), wanted.split))]
    place = f"refs/exps/{head[:2]}/{head[2:]}"
    for ref in git("for-each-ref", "--format=%(refname)", f"{place}/").split():
        if re.fullmatch(NAME.format(r"\d+"), ref.removeprefix(f"{place}/")):  # maybe of more folds
            git("update-ref", "-d", ref)
    refs = {name: f"{place}/{name}" for name in names}
    dequeue(names)
    for k, name in enumerate(names):
        chosen = [
            word for change in (*changes, f"++split.fold={k}") for word in ("--set-param", change)
        ]
        run_dvc("exp", "run", "--queue", "--name", name, *chosen)
    try:
        run_dvc("exp", "run", "--run-all")
    except KeyboardInterrupt:
        print("carseg: DVC goes on with the folds; dvc queue stop --kill ends it", file=sys.stderr)
        raise
    rows = [
        row
        for k, (name, ref) in enumerate(refs.items())
        for row in scores(name, ref, with_fold(wanted, k))
    ]
    judged = sorted(row["photo"] for row in rows)
    same = len({read_from(ref) for ref in refs.values()}) == 1
    if not same or judged != sorted(pair.name for pair in pairs):
        raise CarsegError(
            "Image, Mask, Weights, renderings or code: were changed while folds ran; run carseg "
            "crossval again"
        )
    report(rows, folder)


def _check(overrides: Sequence[str]) -> None:
    for change in overrides:
        # DVC takes params.yaml:NAME and +NAME, too.
        if (name := change.split("=")[0].rpartition(":")[2].lstrip("+~")) in FIXED:
            raise CarsegError(f"--set-param {change}: {name} {FIXED[name]}; leave it out")
        if _has_several_values(change):
            raise CarsegError(f"--set-param {change}: has several values; take one after the other")


def _has_several_values(change: str) -> bool:
    try:
        return any(setting.is_sweep_override() for setting in to_hydra_overrides([bare(change)]))
    except HydraException as error:
        raise CarsegError(
            f"--set-param {change}: is not NAME=VALUE as DVC reads it; write it as in -S epochs=30"
        ) from error


def bare(change: str) -> str:
    """Return NAME=VALUE without the file's name, which DVC takes before a colon."""
    return change.partition(":")[2] if ":" in change.split("=")[0] else change


def changed(settings: str, overrides: Sequence[str]) -> Params:
    """Return the parameters that DVC makes of a params.yaml and its `--set-param`.

    Raises:
        CarsegError: one of them is unknown or out of range.
    """
    with TemporaryDirectory() as folder, chdir(folder):
        path = Path("params.yaml")
        path.write_text(settings, encoding="utf-8")
        try:
            apply_overrides(path, [bare(change) for change in overrides])
        except ParseError as error:  # a key is there twice, of which load_params takes one
            fault = " ".join(str(error.__cause__ or error).split())
            raise CarsegError(f"{path}: not valid YAML: {fault}; correct that line") from error
        except InvalidArgumentError as error:
            cause = error.__cause__ or error
            raise CarsegError(f"--set-param: {str(cause).splitlines()[0]}") from error
        return load_params(path)


def with_fold(params: Params, k: int) -> Params:
    """Return the parameters of the k-th fold."""
    return params.model_copy(update={"split": params.split.model_copy(update={"fold": k})})


def scores(name: str, ref: str, wanted: Params) -> list[Row]:
    """Read the scores of one fold's experiment.

    Raises:
        CarsegError: there is none, or it ran with other parameters than those wanted.
    """
    try:  # ./ is this folder, which may be a subfolder of the repository
        settings, table = (git("show", f"{ref}:./{file}") for file in ("params.yaml", SCORES))
    except CarsegError as error:
        raise CarsegError(f"{name}: did not run to its end; see dvc queue logs {name}") from error
    if parse_params(settings) != wanted:
        raise CarsegError(
            f"{name}: ran with other parameters, by a call that was cut off; run dvc queue stop "
            "--kill, then carseg crossval again"
        )
    return parse_csv(table)


def read_from(ref: str) -> frozenset[tuple[str, str | None]]:
    """Return the paths and hashes of an experiment's pictures, start weights and code."""
    lock = parse_lock(git("show", f"{ref}:./dvc.lock"))
    used = [dep for stage in lock.stages.values() for dep in stage.deps]
    names = ("dataset", "pretrained", "renderings", "carseg/", "stages/")
    return frozenset((dep.path, dep.md5) for dep in used if dep.path.startswith(names))


def _head() -> str:
    """Return the commit that experiments start from; check that git has one, and a user."""
    try:
        head = git("rev-parse", "--verify", "HEAD")
    except CarsegError as error:
        if not any(words in str(error) for words in NO_COMMIT):
            raise  # it tells why, and what to do
        raise CarsegError(
            "git: this project has no commit that experiments could start from; run "
            "git init && git add -A && git commit -m start"
        ) from error
    try:
        git("var", "GIT_COMMITTER_IDENT")
    except CarsegError as error:
        raise CarsegError(
            "git: does not know who you are; run git config --global user.name 'Your Name' and "
            "git config --global user.email you@example.com"
        ) from error
    return head


def report(rows: Sequence[Row], folder: Path) -> None:
    """Write the rows of all folds and their summary, and print it."""
    rows = sorted(rows, key=lambda row: row["photo"])
    write_csv(folder / "scores.csv", list(rows[0]), [list(row.values()) for row in rows])
    summary = {
        net: {
            view: spreads(
                {s: [float(row[f"{net}_{view}_{s}"]) for row in rows] for s in Scores._fields}
            )
            for view in VIEWS
        }
        for net in NETS
    }
    by_name = {
        net: {
            view: {name: s._asdict() for name, s in found.items()} for view, found in views.items()
        }
        for net, views in summary.items()
    }
    by_side = {net: {view: sides(rows, net, view) for view in LAID} for net in NETS}
    write_json(folder / "summary.json", {"photos": len(rows), **by_name, "iou_by_side": by_side})
    print(f"\n{len(rows)} photos, each judged by nets that have not seen it")
    print(f"{'IoU':<20}{'mean':>9}{'std':>9}{'95 % interval':>20}{'worst':>9}")
    for net in NETS:
        for view in VIEWS:
            s = summary[net][view]["iou"]
            interval = f"{s.interval(4):>20}"
            print(f"{f'{net} {view}':<20}{s.mean:>9.4f}{s.std:>9.4f}{interval}{s.worst:>9.4f}")
    print("each photo at all four turns:")
    for net, views in by_side.items():
        for view, means in views.items():
            line = "".join(f"   {side} {mean:.4f}" for side, mean in means.items())
            print(f"{f'{net} {view}':<20}{line}")
    print(f"{folder}/scores.csv has every photo, {folder}/summary.json every score")


def sides(rows: Sequence[Row], net: str, view: str) -> dict[str, float]:
    """Return the mean IoU of cars that stand and of cars that lie on their side.

    Each photo counts at all its four turns, so both means are over the same cars.
    """
    found: dict[str, list[float]] = {"standing": [], "lying": []}
    for row in rows:
        for quarters in QUARTERS:
            lying = int(row["lying"]) != quarters % 2
            value = float(row[f"{net}_{view_name(view, quarters)}_iou"])
            found["lying" if lying else "standing"].append(value)
    return {side: round(float(np.mean(ious)), 6) for side, ious in found.items()}


def run_dvc(*arguments: str) -> None:
    """Run DVC, its output shown as it comes.

    Raises:
        CarsegError: it failed.
    """
    # DVC starts its queue as `dvc`, and stages as `python`: those of this environment.
    here = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    if wait_for(subprocess.Popen([*DVC, *arguments], env=os.environ | {"PATH": here})):
        raise CarsegError(f"dvc {' '.join(arguments)} failed; its message is above")


def dequeue(names: Sequence[str]) -> None:
    """Remove what an interrupted call has left in DVC's queue, maybe of more folds than `names`."""
    for name in {*names, *re.findall(NAME.format(r"\d+"), queue_status())}:
        # Of several of that name one at a time; an error says that there is none.
        remove = [*DVC, "queue", "remove", name]
        while not wait_for(subprocess.Popen(remove, stdout=DEVNULL, stderr=DEVNULL)):
            pass


def queue_status() -> str:
    """Return what DVC tells of its queue."""
    return subprocess.run([*DVC, "queue", "status"], capture_output=True, text=True).stdout


def wait_for(process: subprocess.Popen[bytes]) -> int:
    """Wait until a process has ended and give its exit code.

    Ctrl-C, which the process gets, too, is raised after that: `subprocess.run` would kill DVC a
    moment after, with the user's changes still stashed away.
    """
    interrupted = False
    while process.returncode is None:
        try:
            process.wait()
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt
    return process.returncode


def git(*arguments: str) -> str:
    """Run git and give what it prints.

    Raises:
        CarsegError: it failed.
    """
    english = os.environ | {"LC_ALL": "C"}  # its messages are searched for `NO_COMMIT`
    done = subprocess.run(["git", *arguments], capture_output=True, env=english)
    if done.returncode:
        why = " ".join(done.stderr.decode(errors="replace").split())
        raise CarsegError(f"git {' '.join(arguments)}: {why}")
    return done.stdout.decode().strip("\n")
