"""Fraction of `dvc repro` that is spent outside of training and validation steps, and on what.

    python -m benchmarks.share                                a clone with the rendered sample
    python -m benchmarks.share --images DIR --masks DIR -S epochs=2

Runs the pipeline as committed, in a clone, from an empty cache. Each stage is timed inside its own
process: its imports, its steps (training on a batch, averaging weights, computing batch norm
statistics and scores, predicting photos), and the rest, such as augmentation, checkpoints and
plots. Photos that are read as batch norm statistics are computed count as part of that step. *DVC,
Python* is the remaining time, of DVC and of Python as it starts and ends. The fraction leaves
imports out.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from carseg.errors import CarsegError, run

STEPS = {
    "carseg.learner": ("train_step", "AveragedModel.update_parameters", "update_bn"),
    "carseg.probe": ("Probe.measure",),
    "carseg.train": ("calibrate_batch_norm",),
    "carseg.evaluate": ("predict_masks", "probability_at"),
}
IMPORTED = {  # by stages, once they have begun
    "dataset": "carseg.dataset",
    "split": "carseg.split",
    "weights": "carseg.official",
    "renderings": "carseg.renderings",
    "train_bce": "carseg.train",
    "train_dice": "carseg.train",
    "evaluate": "carseg.evaluate",
}
TIMES = "CARSEG_TIMES"  # of the environment: the file that stages write to


def main() -> None:
    """Run the pipeline and print the table; or, as DVC's `python`, one stage of it."""
    if TIMES in os.environ:
        run_stage(sys.argv[1:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of photos, with --masks")
    parser.add_argument("--masks", type=Path, help="folder of masks, with --images")
    parser.add_argument(
        *("-S", "--set-param"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="changes",
        help="a parameter for this run, as in dvc exp run",
    )
    chosen = parser.parse_args()
    if os.name == "nt":
        parser.error("DVC's `python` is replaced by a shell script, which Windows does not start")
    if (chosen.images is None) != (chosen.masks is None):
        parser.error("--images and --masks go together")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project = prepare(folder, chosen.images, chosen.masks, chosen.changes)
        environment = os.environ | {
            TIMES: str(folder / "times"),
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        }
        began = time.time()
        command = [sys.executable, "-m", "dvc", "repro"]
        with (folder / "said").open("w+") as said:
            done = subprocess.run(
                command, cwd=project, env=environment, stdout=said, stderr=said
            ).returncode
            whole = time.time() - began
            if done:
                said.seek(0)
                sys.exit(said.read()[-3000:])
        times = [json.loads(line) for line in (folder / "times").read_text().splitlines()]
    print(table(whole, times))


def prepare(folder: Path, images: Path | None, masks: Path | None, changes: Sequence[str]) -> Path:
    """Clone the project, bring its photos, and put a `python` before all others.

    Raises:
        CarsegError: a change of a parameter that there is not, or one out of range, or a launcher,
            whose processes could not be timed.
    """
    # Not above: stages start this module, too, and DVC's import would count as theirs.
    from carseg.crossval import changed

    project = folder / "project"
    subprocess.run(["git", "clone", "--quiet", ".", str(project)], check=True)
    for source, name in ((images, "Image"), (masks, "Mask"), (Path("Weights"), "Weights")):
        for path in source.iterdir() if source else ():
            if path.is_file():  # folders are nothing that stages look into
                shutil.copy(path, project / name)
    path = project / "params.yaml"
    params = changed(path.read_text(), changes)
    if params.launcher != "python":
        raise CarsegError(
            f"launcher is {params.launcher}, and only what python starts can be timed; add "
            "-S launcher=python"
        )
    path.write_text(yaml.safe_dump(params.model_dump()))
    # Nothing may come out of a cache of runs, which the user's settings may share, nor be taken as
    # done.
    (project / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")
    (project / "dvc.lock").unlink(missing_ok=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m benchmarks.share "$@"\n')
    python.chmod(0o755)
    return project


def run_stage(words: Sequence[str]) -> None:
    """Run `-m stages.NAME` with its steps timed, and write down what took how long."""
    began, steps = time.perf_counter(), [0.0]
    module = words[words.index("-m") + 1]
    stage = module.removeprefix("stages.")
    import_module(IMPORTED[stage])
    if stage.startswith("train_"):
        import_module("torch._dynamo")  # as torch's optimisers do, late
    for name, functions in STEPS.items():
        if name in sys.modules:
            for function in functions:
                clock(sys.modules[name], function, steps)
    imported = time.perf_counter()
    sys.argv = [module]
    run(import_module(module).main)
    ended = time.perf_counter()
    line = {"stage": stage, "imports": imported - began,
            "steps": steps[0], "rest": ended - imported - steps[0]}  # fmt: skip
    with Path(os.environ[TIMES]).open("a") as file:
        file.write(json.dumps(line) + "\n")


def clock(module: Any, name: str, steps: list[float]) -> None:
    """Put a function in place that adds the seconds it takes to `steps`."""
    *owner, last = name.split(".")
    place = functools.reduce(getattr, owner, module)
    function: Callable[..., object] = getattr(place, last)

    @functools.wraps(function)
    def timed(*args: object, **kwargs: object) -> object:
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            steps[0] += time.perf_counter() - began

    setattr(place, last, timed)


def table(whole: float, times: Sequence[dict[str, Any]]) -> str:
    """Lay the seconds out for reading."""
    lines = [f"{'seconds':<12}{'imports':>10}{'steps':>10}{'rest':>10}"]
    sums = {kind: sum(row[kind] for row in times) for kind in ("imports", "steps", "rest")}
    for row in times:
        lines.append(f"{row['stage']:<12}" + "".join(f"{row[kind]:>10.1f}" for kind in sums))
    lines.append(f"{'DVC, Python':<12}{'':>20}{whole - sum(sums.values()):>10.1f}")
    share = 1 - sums["steps"] / (whole - sums["imports"])
    lines.append(f"{whole:.0f} s in all; {share:.1%} of them, less imports, outside of steps")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
