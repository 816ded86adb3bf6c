"""Time and memory of the pipeline as the data grows: a table of stages for each number of pairs.

    python -m benchmarks.scale --pairs 200 20000 --until train_bce
    python -m benchmarks.scale --pairs 200 5000 --launcher "torchrun --nproc-per-node=2"

Each table is a `dvc repro` in a clone of what is committed here, with small photos under many names
and the tiny configuration of `SETTINGS`. Memory is the peak of a stage's largest process, as Linux
reports it. The time a pair is what each pair beyond 8 adds to a stage.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import yaml
from PIL import Image

from carseg.errors import run

SETTINGS = {
    "model": "u2netp",
    "init": "scratch",
    "renderings": 0,
    "image_size": 64,
    "epochs": 1,
    "batch_size": 64,
    "split": {"val_size": 4, "fold": None},
}
LEAST = 8  # pairs: what a run costs before there is anything to do
KINDS = 50  # different photos
EVERY = 0.05  # seconds between two looks at memory
SIDE = (96, 72)  # pixels of the photos

Peaks = dict[str, float]  # MB, by stage, and `dvc`
Times = dict[str, float]  # seconds, by stage


def main() -> None:
    """Run all sizes and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pairs", type=int, nargs="+", default=[200, 5000], help="how many, a table each"
    )
    parser.add_argument("--until", default="evaluate", metavar="STAGE", help="the last one to run")
    parser.add_argument("--launcher", default="python", help="as in params.yaml")
    chosen = parser.parse_args()
    if min(chosen.pairs) <= LEAST:
        parser.error(f"--pairs {min(chosen.pairs)}: is compared with {LEAST}, so take more")
    if not Path("/proc/self/status").exists():
        parser.error("the memory of processes is read from /proc, which only Linux has")
    least, _ = measure(LEAST, chosen.until, chosen.launcher)
    for count in chosen.pairs:
        seconds, peaks = measure(count, chosen.until, chosen.launcher)
        print(f"{count} pairs, {sum(seconds.values()):.0f} s in stages")
        for stage in seconds:
            each = 1000 * (seconds[stage] - least[stage]) / (count - LEAST)
            print(f"  {stage:<12}{seconds[stage]:>9.1f} s{each:>9.2f} ms a pair"
                  f"{peaks[stage]:>9.0f} MB")  # fmt: skip
        print(f"  {'dvc itself':<12}{'':>32}{peaks['dvc']:>9.0f} MB", flush=True)


def measure(count: int, until: str, launcher: str) -> tuple[Times, Peaks]:
    """Run the pipeline on `count` pairs; give each stage's seconds, and peaks of memory."""
    with tempfile.TemporaryDirectory() as name:
        project = Path(name) / "project"
        subprocess.run(["git", "clone", "--quiet", ".", str(project)], check=True)
        # Not a cache that the user's settings may share.
        (project / ".dvc/config.local").write_text("[cache]\n    dir = cache\n")
        settings = project / "params.yaml"
        settings.write_text(
            yaml.safe_dump(yaml.safe_load(settings.read_text()) | SETTINGS | {"launcher": launcher})
        )
        write_pairs(project, count)
        return watch([sys.executable, "-m", "dvc", "repro", until], project)


def write_pairs(project: Path, count: int) -> None:
    """Write a few photos with masks, and give them many names."""
    for i in range(min(count, KINDS)):
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        mask = Image.new("L", SIDE)
        mask.paste(255, (20, 20, 70, 50))
        coarse.resize(SIDE, Image.Resampling.BICUBIC).save(project / f"Image/{i}.jpg", quality=90)
        mask.save(project / f"Mask/{i}.png")
    for i in range(KINDS, count):
        for folder, ending in (("Image", "jpg"), ("Mask", "png")):
            shutil.copyfile(
                project / f"{folder}/{i % KINDS}.{ending}", project / f"{folder}/{i}.{ending}"
            )


def watch(command: Sequence[str], folder: Path) -> tuple[Times, Peaks]:
    """Run a command, looking at the memory of all of its processes."""
    peaks: Peaks = {}
    begun: dict[str, float] = {}
    seen: Times = {}
    with (folder.parent / "said").open("w+") as said:
        started = psutil.Popen(command, cwd=folder, stdout=said, stderr=said)
        while started.poll() is None:
            for process in [started, *started.children(recursive=True)]:
                name, peak = look(process)
                peaks[name] = max(peaks.get(name, 0.0), peak)
                begun.setdefault(name, time.monotonic())
                seen[name] = time.monotonic() - begun[name]
            time.sleep(EVERY)
        if started.returncode:
            said.seek(0)
            sys.exit(f"{folder}: {said.read()[-3000:]}")
    seen.pop("dvc", None)
    return seen, peaks


def look(process: psutil.Process) -> tuple[str, float]:
    """Give the stage that a process belongs to, else `dvc`, and its peak of memory so far, MB."""
    try:
        words = process.cmdline()
        status = Path(f"/proc/{process.pid}/status").read_text()
    except (psutil.Error, OSError):  # it has just ended
        return "dvc", 0.0
    stage = next((word[7:] for word in words if word.startswith("stages.")), "dvc")
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
    return stage, int(peak) * 1024 / 1e6


if __name__ == "__main__":
    run(main)
