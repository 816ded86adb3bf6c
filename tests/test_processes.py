"""Several processes train as one does, also where one of them dies."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from conftest import write_pairs
from hypothesis import given
from hypothesis import strategies as st
from project import ROOT, Project
from torch import distributed

from carseg.columns import TASKS
from carseg.data import EpochSampler, Shares
from carseg.errors import CarsegError
from carseg.files import read_csv
from carseg.processes import ALONE, TIMEOUT, Processes, together

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
    assert ALONE.all_gather([1, 2]) == [1, 2]
    assert ALONE.sum(0.5) == 0.5


def test_each_process_has_its_own_gpu_before_they_speak_to_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[object] = []
    monkeypatch.setattr(distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", said.append)
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(
        distributed, "init_process_group", lambda kind, timeout: said.append((kind, timeout))
    )
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: said.append("left"))
    monkeypatch.setattr(distributed, "get_rank", lambda: 5)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: said.append(f"{number} threads"))
    monkeypatch.setattr("carseg.processes.cores", lambda: 9)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    joined = ["2 threads", 1, ("cpu:gloo,cuda:nccl", TIMEOUT)]
    with together() as processes:
        assert processes == Processes(5, 8, 1, 4)
    assert said == [*joined, "left"]
    # Who fails does not wait for the others.
    with pytest.raises(ZeroDivisionError), together():
        _ = 1 / 0
    assert said[4:] == joined
    gone = r"^process 5: another process of this training has ended; its own lines, or torch"
    for told in ("Connection closed by peer [127.0.0.1]:7", "Read error: Connection reset by peer"):
        with pytest.raises(CarsegError, match=gone), together():
            raise RuntimeError(told)
    with pytest.raises(RuntimeError, match=r"^a fault of ours$"), together():
        raise RuntimeError("a fault of ours")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    line = (
        r"^launcher: starts 4 processes on this machine, which has 3 GPUs; lower --nproc-per-node"
    )
    with pytest.raises(CarsegError, match=line), together():
        pass


def test_a_step_of_several_processes_is_that_of_one(tmp_path: Path) -> None:
    """Of one photo, which leaves a process without, and of three, which are not shared equally."""
    command = (*TORCHRUN, "--nproc-per-node=2", str(ROOT / "tests/joint_step.py"), "1", "3")
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(
        command, cwd=tmp_path, env=found, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.count("agrees") == 2, done.stdout + done.stderr
    assert done.returncode == 0


# Else torchrun's workers may look for the dead one's address when they come back.
CALM = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
RESULTS = ("u2net_segmentation.pth", "plots/bce.csv")


class Joint(NamedTuple):
    """A project before two processes trained in it, and afterwards."""

    before: Project
    after: Project


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory, official: Path) -> Joint:
    """Of 7 photos, in batches of 3: no shares are equal, and one of the last batch is empty."""
    folder = tmp_path_factory.mktemp("joint")
    before = Project(folder / "before", **CALM)
    write_pairs(before.folder / "Image", before.folder / "Mask", 9)
    shutil.copy(official / "u2netp.onnx", before.folder / "Weights")
    # By so much learning every car is found: scores of one at the brink go by the last digit.
    before.set({"init": "u2netp", "learning_rate": 3e-4, "epochs": 2, "batch_size": 3})
    before.set({"split": {"val_size": 2, "fold": None}})
    before.set({"launcher": "torchrun --standalone --nproc-per-node=2 --max-restarts=1"})
    before.save_every_epoch()
    before.dvc("repro", "split", "weights")
    after = before.copy(folder / "after", **CALM)
    after.dvc("repro", "train_dice")
    return Joint(before, after)


def processes_of(project: Project) -> int:
    told = json.loads((project.folder / "provenance/train_bce.json").read_text())
    return int(told["processes"])


@pytest.mark.slow
def test_curves_do_not_depend_on_the_number_of_processes(joint: Joint, tmp_path: Path) -> None:
    alone = joint.before.copy(tmp_path / "alone")
    alone.set({"launcher": "python"})
    alone.dvc("repro", "train_dice")
    assert (processes_of(alone), processes_of(joint.after)) == (1, 2)
    for task in TASKS:
        curves = [read_csv(p.folder / f"plots/{task}.csv") for p in (alone, joint.after)]
        for one, other in zip(*curves, strict=True):
            for name in one:
                limit = 1e-3 if name.endswith("loss") else 2e-3
                assert float(one[name]) == pytest.approx(float(other[name]), abs=limit), name


@pytest.mark.slow
def test_a_run_whose_worker_dies_ends_by_itself_with_the_same_bytes(
    joint: Joint, tmp_path: Path
) -> None:
    cut = joint.before.copy(tmp_path / "cut", **CALM)
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
    assert cut.bytes_of(*RESULTS) == joint.after.bytes_of(*RESULTS)
