"""What a result depends on is recorded, the same bytes each time."""

import json
import platform
from pathlib import Path

import pytest
import torch

from carseg.device import Device
from carseg.provenance import processor, provenance, record


def test_the_machine_and_what_computes_on_it_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("provenance/train_bce.json")
    record("train_bce", Device("bfloat16"))
    once = path.read_bytes()
    record("train_bce", Device("bfloat16"))
    assert path.read_bytes() == once
    told = json.loads(once)
    assert told["precision"] == "bfloat16"
    assert told["threads"] == torch.get_num_threads()
    assert told["python"] == platform.python_version()
    assert told["packages"]["torch"] == torch.__version__
    record("train_bce", Device("float32"))
    assert json.loads(path.read_bytes()) == {**told, "precision": "float32"}


def test_the_processor_has_the_name_that_linux_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (
        "processor\t: 0\nmodel name\t: Fast CPU: 2 GHz\n\nprocessor\t: 1\nmodel name\t: Fast CPU\n"
    )
    monkeypatch.setattr(Path, "is_file", lambda path: path == Path("/proc/cpuinfo"))
    monkeypatch.setattr(Path, "read_text", lambda _: told)
    assert processor() == "Fast CPU: 2 GHz"
    arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    monkeypatch.setattr(Path, "read_text", lambda _: arm)
    assert processor() == "CPU implementer 0x41, CPU part 0xd40"
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    assert processor() == (platform.processor() or platform.machine())


def test_the_number_of_threads_is_the_one_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert provenance(Device("float32"))["threads"] == 7
