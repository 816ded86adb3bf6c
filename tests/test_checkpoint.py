"""Checkpoints: a run that was cut off ends with the bytes of one that was not."""

import math
import time
import zipfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import Trap, write_manifests
from PIL import Image
from torch import nn

from carseg import checkpoint, learner, material, provenance, weights
from carseg.checkpoint import FOLDER, Checkpoint, fingerprint
from carseg.columns import TRAINED
from carseg.curve import Curve, EpochScore
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.learner import Remembered
from carseg.losses import BCEWithLogitsLoss
from carseg.pairs import read_manifest
from carseg.params import Params
from carseg.probe import Probe
from carseg.processes import Processes
from carseg.recorded import Recorded
from carseg.train import train
from carseg.u2net import U2Net

CPU = Device("float32", "cpu")
OUTPUT, PLOT = Path(TRAINED["bce"]), Path("plots/bce.csv")
PARAMS = Params(
    model="u2netp", image_size=64, epochs=4, batch_size=2, learning_rate=1e-3, precision="float32"
)
Cut = Callable[..., None]

pytestmark = pytest.mark.usefixtures("shallow")


@pytest.fixture(autouse=True)
def _project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # each epoch's state is written
    monkeypatch.setattr(material, "BN_LEAST", 4)  # a state holds what they give, not how many
    write_manifests(tmp_path, train=3, val=2)


def net(seed: int = 0) -> U2Net:
    torch.manual_seed(seed)
    return U2Net("u2netp")


def run(params: Params = PARAMS, task: str = "bce", remembered: U2Net | None = None) -> list[bytes]:
    kept = None if remembered is None else Remembered(remembered, 0.75)
    train(task, net(), BCEWithLogitsLoss(), params, Path(), remembered=kept)
    return [Path(TRAINED[task]).read_bytes(), Path(f"plots/{task}.csv").read_bytes()]


def states() -> list[Path]:
    return sorted(FOLDER.glob("*"))


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Cut:
    """A run that is interrupted in the given epoch, after its steps and before its scores."""
    measure = Probe.measure

    def interrupted_run(epoch: int, params: Params = PARAMS) -> None:
        calls = 0

        def count(probe: Probe, net: nn.Module, criterion: nn.Module, device: Device) -> EpochScore:
            nonlocal calls
            calls += 1
            if calls > 2 * epoch:  # training and validation photos
                raise KeyboardInterrupt
            return measure(probe, net, criterion, device)

        with monkeypatch.context() as patch:
            patch.setattr(Probe, "measure", count)
            with pytest.raises(KeyboardInterrupt):
                run(params)

    return interrupted_run


@pytest.mark.parametrize(
    ("keep", "epochs", "precision"),
    [("best", (1, 2, 4), "float32"), ("last", (3,), "float32"), ("last", (3,), "bfloat16")],
)
def test_a_run_cut_off_in_any_epoch_ends_with_the_same_bytes(
    keep: str, epochs: Sequence[int], precision: str, cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    if keep == "best":  # the second epoch, on any processor: a state has to hold its net
        monkeypatch.setattr("carseg.curve.kept_epoch", lambda ious, _: min(2, len(ious) - 1))
    params = PARAMS.model_copy(update={"keep": keep, "precision": precision})
    whole = run(params)
    assert states() == []
    for epoch in epochs:
        cut(epoch, params)
        assert len(states()) == (epoch > 1)
        # As DVC does before it starts a stage again.
        OUTPUT.unlink()
        PLOT.unlink()
        assert run(params) == whole
        assert states() == []
        assert not FOLDER.exists()


def test_a_run_that_goes_on_repeats_no_epoch(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(3)
    steps = []
    step = learner.train_step
    monkeypatch.setattr(learner, "train_step", lambda *given: steps.append(1) or step(*given))
    run()
    assert len(steps) == 2 * 2, "two epochs of two steps are left"
    assert "bce: goes on after epoch 2\n" in capsys.readouterr().out


def test_a_run_that_remembers_goes_on_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(remembered=net(1))
    step, steps = learner.train_step, []

    def interrupted(*given: object) -> float:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(learner, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(remembered=net(1))
    capsys.readouterr()
    assert run(remembered=net(1)) == whole
    assert "bce: goes on after epoch 2\n" in capsys.readouterr().out


def other_parameters() -> None:
    run(PARAMS.model_copy(update={"epochs": 3}))


def other_photos() -> None:
    path = next(iter(read_manifest(Path("split/train.csv")))).photo
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    run()


def other_masks() -> None:
    path = next(iter(read_manifest(Path("split/train.csv")))).mask
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    run()


def other_code() -> None:
    recorded = Mock(spec=Recorded, code={"carseg/train.py": "another"})
    train("bce", net(), BCEWithLogitsLoss(), PARAMS, Path(), recorded=recorded)


def other_start() -> None:
    train("bce", net(1), BCEWithLogitsLoss(), PARAMS, Path())


def something_to_remember() -> None:
    run(remembered=net(1))


@pytest.mark.parametrize(
    "again",
    [
        other_parameters,
        other_photos,
        other_masks,
        other_code,
        other_start,
        something_to_remember,
    ],
)
def test_a_state_of_something_else_is_not_taken_up_but_removed(
    again: Callable[[], None],
    cut: Cut,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut(2)
    assert len(states()) == 1
    capsys.readouterr()
    again()
    said = capsys.readouterr().out
    assert "goes on" not in said
    assert said.count("bce: the state of a training of other parameters, photos, ") == 1
    assert states() == []


def test_a_package_that_changes_no_training_leaves_its_state(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(2)
    told = Path("site/new_package-1.0.dist-info/METADATA")
    told.parent.mkdir(parents=True)
    told.write_text("Metadata-Version: 2.1\nName: new-package\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(Path("site").resolve())
    assert version("new-package") == "1.0"
    run()
    assert "bce: goes on after epoch 1\n" in capsys.readouterr().out


class OthersRestarted(Processes):
    """The first of two processes, where the other one's machine counts a restart."""

    def all_gather(self, share: Sequence[Any]) -> list[Any]:
        return [*share, "1"]


def test_a_restart_that_another_machine_counts_removes_no_state(cut: Cut) -> None:
    cut(2)
    before = states()
    Checkpoint("bce", "0" * 32, OthersRestarted(0, 2, 0, 1)).remove()
    assert states() == before
    Checkpoint("bce", "0" * 32).remove()
    assert states() == []


def test_a_state_is_left_until_there_is_one_of_the_next_training(cut: Cut) -> None:
    """Hours of work are not to be lost to a parameter that was mistyped."""
    cut(3)
    before = states()
    other = PARAMS.model_copy(update={"learning_rate": 0.01})
    cut(1, other)  # before it had one of its own
    assert states() == before
    cut(3, other)
    assert len(states()) == 1
    assert states() != before


def test_the_tasks_leave_each_others_states_alone(cut: Cut) -> None:
    cut(2)
    before = states()
    run(task="dice")
    assert states() == before


def test_what_a_killed_writer_left_is_removed(cut: Cut, capsys: pytest.CaptureFixture[str]) -> None:
    cut(3)
    (path,) = states()
    path.with_suffix(".part").write_bytes(b"half a state")
    capsys.readouterr()
    run()
    assert states() == []
    assert "is removed" not in capsys.readouterr().out, "it is of no other training"


def test_a_state_that_cannot_be_removed_stops_no_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (FOLDER / "bce-other.pt").mkdir(parents=True)  # no file, so it cannot be unlinked
    run()
    said = capsys.readouterr()
    assert "bce-other.pt: cannot be removed (" in said.err
    assert "is removed" not in said.out
    assert states() == [FOLDER / "bce-other.pt"]


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_training_ends_well_where_the_folder_of_states_cannot_be_removed(kind: str) -> None:
    whole = run()
    if kind == "link":
        Path("disk").mkdir()
        FOLDER.symlink_to("disk")
    else:
        FOLDER.touch()
    assert run() == whole
    assert FOLDER.is_symlink() == (kind == "link")
    assert not any(Path("disk").glob("*"))


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing")],
)
def test_a_disk_without_room_for_states_stops_no_training(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run()
    save, tried = torch.save, []

    def full(state: object, target: object) -> None:
        if isinstance(target, Path):
            tried.append(target)
            target.write_bytes(b"as much as went in")
            raise error
        save(state, target)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", full)
    capsys.readouterr()
    assert run() == whole
    assert len(tried) == 1
    assert capsys.readouterr().err.count("nor will any other be; training goes on, but") == 1
    assert states() == []


def test_where_no_folder_can_be_made_for_states_training_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    FOLDER.write_text("in the way")
    state = Checkpoint("bce", "0" * 32)
    state.save({})
    state.save({})
    assert capsys.readouterr().err.count("nor will any other be; training goes on, but") == 1


def test_states_take_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARE", 0.1)
    now, written = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def slow(state: object, target: Path) -> None:
        nonlocal now
        written.append(now)
        target.touch()
        now += 2

    monkeypatch.setattr(torch, "save", slow)
    state = Checkpoint("bce", "0" * 32)
    for second in range(0, 60, 5):
        now = max(now, second)
        state.save({})
    assert written == [0, 25, 50], "a state that took 2 s is followed by none for 20 s"


def test_the_first_state_waits_for_half_the_time_that_its_size_will_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "SHARE", 0.1)
    now, written = 0.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(torch, "save", lambda _, target: (written.append(now), target.touch()))
    layer = torch.nn.Linear(3, 5)
    monkeypatch.setattr(checkpoint, "RATE", layer.weight.nbytes + layer.bias.nbytes)  # in 1 s
    state = Checkpoint("bce", "0" * 32)
    for second in range(10):
        now = second
        state.save({"net": layer})
    assert written[0] == 5, "a state that takes 1 s is a tenth of 10 s, and comes half-way"


@pytest.mark.parametrize("there", [True, False])
def test_machines_that_differ_go_on_from_the_first_ones_state_or_none(there: bool) -> None:
    said: list[object] = ["first", "0", there]

    class Second(Processes):
        def all_gather(self, share: Sequence[object]) -> list[object]:  # type: ignore[override]
            return [said.pop(0), *share]

    FOLDER.mkdir()
    first, curve = Curve(), Curve()
    first.add(EpochScore(0.1, 0.2, 0.3), EpochScore(0.4, 0.5, 0.6))
    torch.save({"curve": first.state_dict()}, FOLDER / "bce-first.pt")
    state = Checkpoint("bce", "second", Second(rank=1, world_size=2))
    assert state.restore({"curve": curve}, CPU) is there
    assert len(curve) == there
    assert [path.name for path in states()] == ["bce-first.pt"]


def test_what_torchrun_starts_again_leaves_states_that_it_cannot_take_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FOLDER.mkdir()
    (FOLDER / "bce-it.pt").touch()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    Checkpoint("bce", "other").remove()
    assert [path.name for path in states()] == ["bce-it.pt"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    Checkpoint("bce", "other").remove()
    assert states() == []


@pytest.mark.parametrize(
    "error", [PermissionError(13, "no"), MemoryError(), RuntimeError("CUDA out of memory")]
)
def test_a_state_that_cannot_be_read_now_is_not_called_broken(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    FOLDER.mkdir()
    (FOLDER / "bce-it.pt").touch()
    state = Checkpoint("bce", "it")
    monkeypatch.setattr(torch, "load", Mock(side_effect=error))
    with pytest.raises(type(error)):
        state.restore({}, CPU)
    assert [path.name for path in states()] == ["bce-it.pt"]


def test_code_in_a_state_is_refused_and_not_run() -> None:
    FOLDER.mkdir()
    torch.save({"net": Trap(Path("marker"))}, FOLDER / "bce-it.pt")
    with pytest.raises(CarsegError, match=r"bce-it\.pt: is broken; remove it to train anew"):
        Checkpoint("bce", "it").restore({}, CPU)
    assert not Path("marker").exists()


def test_a_state_that_does_not_fit_is_told_of_while_it_is_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    FOLDER.mkdir()
    (FOLDER / "bce-other.pt").touch()
    (FOLDER / "dice-it.pt").touch()
    Checkpoint("bce", "it")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "bce-other.pt: is the state of a training of other parameters, photos, " in said
    assert "interrupt this training and change them back" in said
    assert [path.name for path in states()] == ["bce-other.pt", "dice-it.pt"]
    (FOLDER / "bce-it.pt").touch()
    Checkpoint("bce", "it")  # goes on from its own
    Checkpoint("bce", "another", Processes(1, 1))  # is not the one that speaks
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    Checkpoint("bce", "restarted")
    assert capsys.readouterr().err == ""


def test_the_size_of_a_state_counts_tensors_at_any_depth() -> None:
    layer = torch.nn.Linear(3, 5)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    adam.step()
    moments, steps = 2 * 20 * 4, 2 * 4
    assert checkpoint.nbytes({"net": layer.state_dict()}) == 20 * 4
    assert checkpoint.nbytes({"adam": adam.state_dict(), "epoch": 3}) == moments + steps


def test_a_state_without_checksums_leaves_them_to_all_other_files(cut: Cut) -> None:
    cut(2)
    (path,) = states()
    with zipfile.ZipFile(path) as state:
        assert state.testzip() is not None
    run()
    with zipfile.ZipFile(OUTPUT) as final:
        assert final.testzip() is None


def test_a_state_is_there_until_the_next_is_whole(
    cut: Cut, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(2)
    (path,) = states()
    content, save = path.read_bytes(), torch.save

    def cut_off(state: object, target: object) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"as much as went in")
            raise KeyboardInterrupt
        save(state, target)  # type: ignore[arg-type]

    monkeypatch.setattr(torch, "save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert path.read_bytes() == content


def test_a_broken_state_is_an_error_that_says_what_to_do(cut: Cut) -> None:
    cut(2)
    (path,) = states()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CarsegError, match=f"{path}: .*remove it"):
        run()


def test_the_fingerprint_is_the_same_for_the_same_and_no_nets_weights_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = read_manifest(Path("split/train.csv"))
    one, again = (fingerprint(PARAMS, CPU, 1, [pairs], [net()], {}) for _ in range(2))
    assert one == again
    assert len(one) == 32
    differing = {
        one,
        fingerprint(PARAMS, Device("bfloat16"), 1, [pairs], [net()], {}),
        fingerprint(PARAMS, CPU, 1, [pairs[:1], pairs[1:]], [net()], {}),
        fingerprint(PARAMS, CPU, 1, [pairs[::-1]], [net()], {}),
        fingerprint(PARAMS, CPU, 1, [pairs], [net(), net()], {}),
        fingerprint(PARAMS, CPU, 2, [pairs], [net()], {}),
        fingerprint(PARAMS, CPU, 1, [pairs], [net()], {"carseg/train.py": "1"}),
        fingerprint(PARAMS, CPU, 1, [pairs], [net()], {"carseg/train.py": "2"}),
    }
    with monkeypatch.context() as patch:  # whose sums come out differently
        patch.setattr(provenance, "processor", lambda: "another one")
        differing.add(fingerprint(PARAMS, CPU, 1, [pairs], [net()], {}))
    assert len(differing) == 9
    indifferent = {"workers": 2, "launcher": "torchrun", "cleanup": True}
    other = PARAMS.model_copy(update=indifferent)
    assert fingerprint(other, CPU, 1, [pairs], [net()], {}) == one
    others = {
        "init": "scratch",
        "model": "u2net",
        "image_size": 96,
        "batch_size": 3,
        "epochs": 5,
        "learning_rate": 1e-4,
        "renderings": 1,
        "seed": 7,
        "keep": "last",
        "patience": 3,
        "threshold": 0.4,
        "precision": "bfloat16",
    }
    assert others.keys() | indifferent.keys() | {"split"} == Params.model_fields.keys()
    for name, value in others.items():
        changed = PARAMS.model_copy(update={name: value})
        differing.add(fingerprint(changed, CPU, 1, [pairs], [net()], {}))
    assert len(differing) == 9 + len(others)
    weights.save(net(), OUTPUT)
    assert fingerprint(PARAMS, CPU, 1, [pairs], [weights.load("u2netp", OUTPUT)], {}) == one
