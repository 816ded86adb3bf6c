"""Runs cut off in a training and between stages: the next one ends with an undisturbed one's bytes.

They run in other clones, time zones and languages than that one, so these change nothing either.

`python -m pytest tests/test_kill.py --kills 20` kills twenty, and interrupts five, most of them at
random moments.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import PAIRS, Run, write_pairs
from dvc.exceptions import DvcException
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils import strictyaml
from project import Project

RESULTS = (
    "dvc.lock",
    "metrics.json",
    "plots/bce.csv",
    "plots/dice.csv",
    "plots/scores.csv",
    "u2net_segmentation.pth",
    "u2net_segmentation_dice_loss.pth",
    "report.html",
)
ABROAD = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1"}
REPRO = (sys.executable, "-m", "dvc", "repro")

pytestmark = pytest.mark.slow


class Undisturbed:
    """A project that has not run yet, what a whole run of it makes, and how long that takes."""

    def __init__(self, folder: Path, ran: Run) -> None:
        self.project = Project(folder)
        self.project.make_shallow()
        apart = folder.with_name("pairs")
        write_pairs(apart / "Image", apart / "Mask", PAIRS)
        # In another order, which is how file systems list them.
        for path in sorted(apart.rglob("*.???"))[::-1]:
            path.rename(folder / path.relative_to(apart))
        self.seconds = ran.seconds
        self.results = ran.project.bytes_of(*RESULTS)
        self.files = ran.project.user_files()

    def cut_off(self, folder: Path, after: float | str, by: signal.Signals) -> tuple[str, bool]:
        """Send the signal to a run's whole group, rerun, compare.

        Gives what the first run said, and whether the signal found it running.

        Args:
            folder: to run in.
            after: so many seconds, or when the run has said this.
            by: the signal.
        """
        project, log = self.project.copy(folder, **ABROAD), folder.with_suffix(".log")
        with log.open("w+") as output:
            started = project.start(*REPRO, output=output)
            if isinstance(after, str):
                while after not in log.read_text():
                    assert started.poll() is None, log.read_text()
                    time.sleep(0.05)
            else:
                time.sleep(after)
            ended = started.poll() is not None
            if not ended:
                os.killpg(started.pid, by)
            code = started.wait(timeout=120)
        said = log.read_text()
        assert ended or code != 0, f"went on after {after}: {said}"
        assert not ended or isinstance(after, float), f"it ended too early: {said}"
        assert project.user_files() == self.files
        if by == signal.SIGKILL and is_half_written(project.folder / "dvc.lock"):
            (project.folder / "dvc.lock").unlink()  # as docs/troubleshooting.md says
        project.run(*REPRO)
        assert project.bytes_of(*RESULTS) == self.results, f"cut off after {after}: {said}"
        assert project.user_files() == self.files
        shutil.rmtree(folder)
        return said, not ended


def is_half_written(lock: Path) -> bool:
    """Tell whether DVC was killed while it wrote its lock file, which it does not do atomically."""
    if not lock.exists():
        return False
    try:
        strictyaml.load(str(lock), COMPILED_LOCKFILE_SCHEMA)
    except DvcException:
        return True
    return False


def test_a_lock_that_was_cut_off_within_a_value_is_told_from_a_whole_one(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    whole = undisturbed.results["dvc.lock"]
    lock = tmp_path / "dvc.lock"
    lock.write_bytes(whole)
    assert not is_half_written(lock)
    lock.write_bytes(whole[: whole.index(b"hash: md5") + len(b"hash:")])
    assert is_half_written(lock)


@pytest.fixture(scope="module")
def undisturbed(ran: Run, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed") / "start", ran)


def moments(count: int, seconds: float, seed: int) -> list[float]:
    """One moment in each of `count` equal parts of a run, so that every stage is met."""
    draw = random.Random(seed)
    return [seconds * (i + draw.random()) / count for i in range(count)]


def test_a_killed_run_ends_with_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("kills")
    # In a training, and where its weights are read, which chance may miss.
    times: list[float | str] = ["bce   1/", "Running stage 'evaluate'"]
    times += moments(count - 2, undisturbed.seconds, 1)
    met = [
        undisturbed.cut_off(tmp_path / str(i), after, signal.SIGKILL)[1]
        for i, after in enumerate(times[:count])
    ]
    assert any(met[2:]) or count < 3, "no random moment was within the run"


def test_an_interrupted_run_shows_no_traceback_and_ends_with_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = -(-request.config.getoption("kills") // 4)
    # In a training first, which has something to say and to write.
    times: list[float | str] = ["dice   1/", *moments(count - 1, undisturbed.seconds, 2)]
    for i, after in enumerate(times):
        said, _ = undisturbed.cut_off(tmp_path / str(i), after, signal.SIGINT)
        # DVC's own start-up, before any stage, is not ours to catch.
        assert "Traceback" not in said[said.find("Running stage") :], said
