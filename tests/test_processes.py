"""Several processes train as one does, also where one of them dies."""

import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import write_pairs
from hypothesis import given
from hypothesis import strategies as st
from project import ROOT, Project

from carseg.data import EpochSampler, Shares
from carseg.files import read_csv
from carseg.processes import ALONE, Processes, together

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


@given(
    length=st.integers(1, 40),
    batch=st.integers(1, 9),
    count=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_shares_of_an_epoch_are_its_batches(
    length: int, batch: int, count: int, epoch: int
) -> None:
    """Every photo once, in the same batches however many processes there are."""
    sampler = EpochSampler(length, seed=3)
    sampler.epoch = epoch
    order = list(sampler)
    batches = [order[at : at + batch] for at in range(0, length, batch)]
    everyones = [Shares(sampler, batch, Processes(rank, count)) for rank in range(count)]
    assert {len(shares) for shares in everyones} == {len(batches)}
    for whole, *shares in zip(batches, *everyones, strict=True):
        assert sorted(item for share in shares for item in share) == sorted(whole)
        assert shares == [whole[rank::count] for rank in range(count)]


def test_who_is_alone_has_everything() -> None:
    with together() as processes:
        assert processes == ALONE
    assert ALONE.first
    assert [1, 2, 3][ALONE.mine] == [1, 2, 3]
    assert ALONE.gather([1, 2]) == [1, 2]
    assert ALONE.sum(0.5) == 0.5


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, (1, 3)), pytest.param(3, (5, 2), marks=pytest.mark.slow)]
)
def test_a_step_of_several_processes_is_that_of_one(
    count: int, sizes: tuple[int, int], tmp_path: Path
) -> None:
    project = Project(tmp_path / "project", PYTHONPATH=str(ROOT / "tests"))
    script = str(ROOT / "tests/joint_step.py")
    said = project.run(*TORCHRUN, f"--nproc-per-node={count}", script, *map(str, sizes))
    assert said.count("agrees") == 2


def trained(folder: Path, launcher: str, **settings: object) -> Project:
    """Give a project that has been trained, started in the given way."""
    project = Project(folder)
    write_pairs(project.folder / "Image", project.folder / "Mask", 20)
    project.set({"launcher": launcher, "init": "u2netp", "learning_rate": 1e-4, **settings})
    project.dvc("repro", "train_bce")
    return project


@pytest.mark.slow
def test_curves_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    """Of 15 photos, in batches of 4: neither two nor three processes have equal shares."""
    settings = {"epochs": 2, "batch_size": 4, "split": {"val_size": 5, "fold": None}}
    alone = trained(tmp_path / "1", "python", **settings)
    for count in (2, 3):
        many = trained(tmp_path / str(count), f"torchrun --nproc-per-node={count}", **settings)
        curves = [read_csv(p.folder / "plots/bce.csv") for p in (alone, many)]
        for one, other in zip(*curves, strict=True):
            for name in one:
                limit = 1e-3 if name.endswith("loss") else 2e-3
                assert float(one[name]) == pytest.approx(float(other[name]), abs=limit), name


@pytest.mark.slow
def test_a_run_whose_worker_dies_ends_by_itself_with_the_same_bytes(tmp_path: Path) -> None:
    settings = {
        "epochs": 4,
        "launcher": "torchrun --standalone --nproc-per-node=2 --max-restarts=1",
    }
    results = ("u2net_segmentation.pth", "plots/bce.csv")
    whole, cut = (
        # Else torchrun's workers may look for the dead one's address when they come back.
        Project(tmp_path / name, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        for name in ("whole", "cut")
    )
    for project in (whole, cut):
        write_pairs(project.folder / "Image", project.folder / "Mask", 6)
        project.set(settings)
    whole.dvc("repro", "train_bce")
    with (tmp_path / "said").open("w+") as output:
        started = cut.start(sys.executable, "-m", "dvc", "repro", "train_bce", output=output)
        while not list(cut.folder.glob(".checkpoints/bce-*.pt")):
            assert started.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
        workers = [
            process
            for process in psutil.Process(started.pid).children(recursive=True)
            if process.is_running() and process.cmdline()[1:] == ["-u", "-m", "stages.train_bce"]
        ]
        assert len(workers) == 2
        workers[1].send_signal(signal.SIGKILL)
        assert started.wait(timeout=300) == 0
    assert "goes on after epoch" in (tmp_path / "said").read_text()
    assert cut.bytes_of(*results) == whole.bytes_of(*results)
