"""Training: repeatable to the byte, ends with its best epoch, and stops when it should."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import noise, uneven, write_manifests, write_pairs
from PIL import Image
from project import SHALLOW
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn

from carseg import checkpoint, learner, material, weights
from carseg import train as training
from carseg.batch_norm import calibrate_batch_norm
from carseg.checkpoint import fingerprint
from carseg.columns import TRAINED
from carseg.curve import COLUMNS, EpochScore
from carseg.data import EpochSampler, Samples, Shares
from carseg.device import Device, Net
from carseg.errors import CarsegError
from carseg.evaluate import net_called
from carseg.files import read_csv, write_csv
from carseg.learner import (
    MAX_DICE_RATE,
    WARM_UP,
    Learner,
    Remembered,
    moving_average,
    train_step,
    warmup_cosine,
)
from carseg.losses import BCEWithLogitsLoss, DiceLoss
from carseg.material import BN_BATCH, Material, batch_norm_batches, prepare, read_parts
from carseg.pairs import Pair, read_manifest
from carseg.params import Params
from carseg.predict import probability
from carseg.probe import Probe
from carseg.processes import ALONE, Processes
from carseg.recorded import Recorded
from carseg.squares import Squares
from carseg.train import (
    TASK_1_SHARE,
    UNTRAINED_SHARE,
    calibrated_start,
    train,
    train_bce,
    train_dice,
)
from carseg.u2net import VARIANTS, U2Net
from carseg.upright import on_its_side, stand_up

CPU = Device("float32", "cpu")
OUTPUT, PLOT = Path(TRAINED["bce"]), Path("plots/bce.csv")
TINY = Params(
    model="u2netp", image_size=64, epochs=2, batch_size=2, learning_rate=1e-2, precision="float32"
)


@pytest.fixture(autouse=True)
def _project(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A project with three pairs to train on, so that the last batch is not full, and two more."""
    if "whole" not in request.fixturenames:
        monkeypatch.setitem(VARIANTS, "u2netp", SHALLOW)
    monkeypatch.chdir(tmp_path)
    write_manifests(tmp_path, train=3, val=2)


@pytest.fixture
def whole() -> None:
    """Let `u2netp` be what it is."""


def tiny(**changes: object) -> Params:
    return TINY.model_copy(update=changes)


def fresh_net(seed: int = 0) -> U2Net:
    torch.manual_seed(seed)
    return U2Net("u2netp")


def run(
    params: Params = TINY, criterion: nn.Module | None = None, task: str = "bce"
) -> tuple[bytes, bytes]:
    """Train a fresh net; give the weights and the curve as bytes."""
    train(task, fresh_net(), criterion or BCEWithLogitsLoss(), params, Path())
    return Path(TRAINED[task]).read_bytes(), Path(f"plots/{task}.csv").read_bytes()


def learnt_by(params: Params) -> dict[str, Tensor]:
    """Train a fresh net; give its weights."""
    run(params)
    return weights.load("u2netp", OUTPUT).state_dict()


def curve(path: Path = PLOT) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in row.items()} for row in read_csv(path)]


class Script:
    """Stands in for measuring: says the validation IoU given, and keeps each epoch's weights."""

    def __init__(self, *ious: float) -> None:
        # Training gets worse where validation gets better: only one of them may decide.
        self.scores = (EpochScore(0.0, 0.0, x) for iou in ious for x in (1 - iou, iou))
        self.states: list[dict[str, Tensor]] = []
        self.calls = 0

    def measure(self, probe: Probe, net: U2Net, criterion: nn.Module, device: Device) -> EpochScore:
        if self.calls % 2 == 0:
            self.states.append({key: value.clone() for key, value in net.state_dict().items()})
        self.calls += 1
        return next(self.scores)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    def patch(*ious: float) -> Script:
        script = Script(*ious)
        monkeypatch.setattr(
            Probe, "measure", lambda probe, *arguments: script.measure(probe, *arguments)
        )
        return script

    return patch


def test_the_curve_has_a_row_for_each_epoch_and_the_start() -> None:
    run()
    assert PLOT.read_text().splitlines()[0] == ",".join(COLUMNS)
    rows = curve()
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert all(0 <= row[key] <= 1 for row in rows for key in COLUMNS[3:])
    assert all(math.isfinite(row[key]) for row in rows for key in COLUMNS)
    assert len({row["val_loss"] for row in rows}) == 3, "the net must have changed in each epoch"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_run_gives_the_same_bytes_whatever_came_before(precision: str) -> None:
    params = tiny(precision=precision)
    first = run(params)
    np.random.default_rng().random()
    torch.rand(3)
    assert run(params) == first


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_change_nothing() -> None:
    assert run(tiny(workers=2)) == run(tiny(workers=0))


def test_the_seed_changes_the_run() -> None:
    # From the same start: what differs is the order of photos and how they are augmented.
    assert run(tiny(epochs=1))[1] != run(tiny(epochs=1, seed=43))[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_the_untrained_net_is_the_one_that_training_begins_with(seed: int) -> None:
    Path("pretrained").mkdir()
    params = tiny(init="scratch", seed=seed)
    wanted = weights.start("u2netp", Path("pretrained"), seed).state_dict()
    for net in (calibrated_start(params), net_called("untrained", params)):
        assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items())


def test_the_second_task_sees_the_photos_otherwise_than_the_first() -> None:
    assert run(tiny(epochs=1))[1] != run(tiny(epochs=1), task="dice")[1]


@pytest.mark.parametrize("other", [{"seed": 43}, {"task": "dice"}])
def test_seed_and_task_decide_both_the_order_and_the_samples(other: dict[str, Any]) -> None:
    def prepared(task: str = "bce", **changes: object) -> Material:
        return prepare(task, read_parts(0), tiny(**changes), Path(), CPU, ALONE)

    def orders(of: Material) -> list[list[int]]:
        found = []
        for epoch in range(8):
            of.sampler.epoch = epoch
            found.append([i for _, i in of.sampler])
        return found

    first, second = prepared(), prepared(**other)
    assert orders(first) != orders(second)
    looks = [[of.loader.dataset[epoch, 0][0] for epoch in range(8)] for of in (first, second)]
    assert not all(map(torch.equal, *looks))


def test_the_kept_weights_score_as_the_best_row_says() -> None:
    # A start and a rate with which the score goes up and down.
    params = tiny(epochs=3, learning_rate=1e-3)
    train("bce", uneven(fresh_net()), BCEWithLogitsLoss(), params, Path())
    rows = curve()
    assert len({row["val_iou"] for row in rows}) == 4, "epochs alike would prove nothing"
    best = max(rows, key=lambda row: row["val_iou"])
    net = weights.load("u2netp", OUTPUT)
    for part in ("train", "val"):  # as many photos that train as validate
        probe = Probe(read_manifest(Path(f"split/{part}.csv"))[:2], params, Path())
        told = [best[f"{part}_{score}"] for score in EpochScore._fields]
        assert probe.measure(net, BCEWithLogitsLoss(), CPU) == pytest.approx(told, abs=2e-6)


@pytest.mark.parametrize(
    ("ious", "best"),
    [((0.1, 0.5, 0.3), 1), ((0.5, 0.4, 0.3), 0)],
)
def test_the_best_epoch_is_kept(
    ious: tuple[float, ...], best: int, scripted: Callable[..., Script]
) -> None:
    script = scripted(*ious)
    run()
    kept = weights.load("u2netp", OUTPUT).state_dict()
    same = [all(torch.equal(kept[key], state[key]) for key in kept) for state in script.states]
    assert same == [epoch == best for epoch in range(3)]


def test_the_last_epoch_is_kept_when_asked(scripted: Callable[..., Script]) -> None:
    script = scripted(0.1, 0.5, 0.3)
    run(tiny(keep="last"))
    kept = weights.load("u2netp", OUTPUT).state_dict()
    same = [all(torch.equal(kept[key], state[key]) for key in kept) for state in script.states]
    assert same == [False, False, True]


@pytest.mark.parametrize(
    ("keep", "patience", "last"),
    [("best", 1, 2), ("best", 2, 5), ("best", None, 7), ("last", 1, 2)],
)
def test_patience_ends_a_run_that_gets_no_better(
    keep: str, patience: int | None, last: int, scripted: Callable[..., Script]
) -> None:
    scripted(0.1, 0.2, 0.15, 0.3, 0.3, 0.2, 0.1, 0.9)
    run(tiny(epochs=7, patience=patience, keep=keep))
    assert [row["epoch"] for row in curve()] == list(range(last + 1))


class Broken(nn.Module):
    """A loss that is no number from the given step of training on."""

    def __init__(self, value: float, step: int) -> None:
        super().__init__()
        self.value = value
        self.left = step

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        self.left -= logits.requires_grad
        return logits.mean() * (self.value if self.left <= 0 and logits.requires_grad else 1)


def test_of_a_large_batch_only_some_photos_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carseg.errors.NAMED", 1)
    with pytest.raises(CarsegError, match=r" at \S+\.jpg, …; lower learning_rate"):
        run(criterion=Broken(math.nan, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "epoch", "photos"), [(1, 1, slice(2)), (4, 2, slice(2, 3))])
def test_a_loss_that_is_no_number_ends_the_run_with_photos_and_remedy(
    value: float, step: int, epoch: int, photos: slice, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []
    getitem = Samples.__getitem__

    def look(samples: Samples, index: tuple[int, int]) -> tuple[Tensor, Tensor]:
        looked_at.extend([index[1]] * (index[0] == epoch))
        return getitem(samples, index)

    monkeypatch.setattr(Samples, "__getitem__", look)
    with pytest.raises(CarsegError) as error:
        run(criterion=Broken(value, step))
    pairs = read_manifest(Path("split/train.csv"))
    names = ", ".join(pairs[i].photo_file for i in looked_at[photos])
    assert re.fullmatch(
        rf"bce: the loss is (nan|-?inf) in epoch {epoch} at {names}; lower learning_rate, or look "
        f"at these photos; {OUTPUT} has the epoch kept until then",
        str(error.value),
    )
    assert not PLOT.exists()
    # The weights of the best epoch before are left.
    weights.load("u2netp", OUTPUT)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_weights_that_the_last_step_broke_are_not_kept(
    keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is that before it, and so does not tell."""
    averaged = learner.Learner.averaged

    def broken(*given: object) -> nn.Module:
        net = averaged(*given)  # type: ignore[arg-type]
        for value in net.parameters():
            value.detach().fill_(math.nan)
        return net

    monkeypatch.setattr(learner.Learner, "averaged", broken)
    with pytest.raises(CarsegError, match=r"^bce: the loss is nan after epoch 1; lower learning_"):
        run(tiny(keep=keep))
    assert all(value.isfinite().all() for value in weights.load("u2netp", OUTPUT).parameters())
    assert not PLOT.exists()


def test_a_start_that_computes_nothing_is_told_of_and_leaves_nothing() -> None:
    net = fresh_net()
    net.outconv.bias.detach().fill_(math.nan)
    line = r"^bce: the loss is nan after epoch 0; start from other weights$"
    with pytest.raises(CarsegError, match=line):
        train("bce", net, BCEWithLogitsLoss(), TINY, Path())
    assert not OUTPUT.exists()


def test_a_parameter_changed_meanwhile_ends_a_run_that_can_be_taken_up_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)  # each epoch's state is written
    whole = run()
    OUTPUT.unlink()
    PLOT.unlink()
    Path("dvc.yaml").write_text("stages: {train_bce: {params: [epochs]}}")
    Path("params.yaml").write_text("epochs: 2\n")

    def train_recorded() -> None:
        recorded = Recorded("train_bce")
        train("bce", fresh_net(), BCEWithLogitsLoss(), TINY, Path(), recorded=recorded)

    measure = Probe.measure

    def edit(*given: Any) -> EpochScore:
        Path("params.yaml").write_text("epochs: 9\n")
        return measure(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "measure", edit)
        with pytest.raises(CarsegError, match=r"^params\.yaml: epochs was changed while this ran"):
            train_recorded()
    assert not OUTPUT.exists()
    assert not PLOT.exists()
    Path("params.yaml").write_text("epochs: 2\n")
    train_recorded()
    assert (OUTPUT.read_bytes(), PLOT.read_bytes()) == whole
    assert "bce: goes on after epoch 1\n" in capsys.readouterr().out


@pytest.mark.usefixtures("whole")
def test_a_step_learns_from_its_batch() -> None:
    squares = Squares(read_manifest(Path("split/train.csv")), 64, Path())
    photos, masks = (torch.stack(parts) for parts in zip(*squares, strict=True))
    net = fresh_net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    losses = [
        train_step(net, BCEWithLogitsLoss(), optimizer, CPU, photos, masks) for _ in range(10)
    ]
    assert losses[-1] < 0.7 * losses[0]


def test_a_step_takes_gradients_of_its_own_batch_only_and_tells_the_loss_before() -> None:
    photos, masks = noise(2, 3, 64, 64), (noise(2, 1, 64, 64) > 0).float()
    net, criterion = fresh_net(), DiceLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    net.eval()
    first = train_step(net, criterion, optimizer, CPU, photos, masks)
    assert net.training
    gradient = net.outconv.weight.grad.clone()
    assert train_step(net, criterion, optimizer, CPU, photos, masks) == pytest.approx(first)
    torch.testing.assert_close(net.outconv.weight.grad, gradient)
    assert criterion(net(photos), masks).item() == pytest.approx(first)
    assert all(p.grad is not None for p in net.parameters())


def test_a_step_computes_in_the_devices_format_and_its_loss_in_float32() -> None:
    met: list[Tensor] = []

    class Noting(DiceLoss):
        def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
            met.append(logits.detach())
            return super().forward(logits, mask)

    net, photos, masks = nn.Conv2d(3, 7, 1), noise(2, 3, 8, 8), noise(2, 1, 8, 8).sigmoid()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    train_step(net, Noting(), optimizer, Device("bfloat16", "cpu"), photos, masks)
    assert met[0].dtype == torch.float32
    assert torch.equal(met[0], met[0].bfloat16().float())
    assert not torch.equal(met[0], net(photos))


def test_a_run_in_bfloat16_scores_nearly_as_one_in_float32() -> None:
    told = []
    for precision in ("float32", "bfloat16"):
        run(tiny(epochs=1, precision=precision), DiceLoss())
        told.append([row[f"{part}_loss"] for row in curve() for part in ("train", "val")])
    assert told[0] != told[1]
    assert told[0] == pytest.approx(told[1], abs=0.05)


@pytest.mark.parametrize(("rank", "wanted"), [(0, [4 / 3, 1]), (1, [2 / 3, 1])])
def test_a_photo_weighs_the_same_in_every_process(
    rank: int, wanted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "sum", lambda _, value: value)
    two, met = Processes(rank, 2), []
    shares = Shares(EpochSampler(5, 0), 3, two)
    looks = [(torch.empty(len(s), 3, 8, 8), torch.empty(len(s), 1, 8, 8)) for s in shares]

    def step(photos: Tensor, masks: Tensor, weight: float) -> float:
        met.append(weight)
        return 0.0

    training.learn(Mock(step=step), Mock(loader=looks, shares=shares), "", two)
    assert met == pytest.approx(wanted)


def test_the_learning_rate_climbs_then_falls_to_nothing() -> None:
    assert warmup_cosine(0) == 0
    assert warmup_cosine(WARM_UP / 2) == pytest.approx(0.5)
    assert warmup_cosine(WARM_UP) == pytest.approx(1)
    assert warmup_cosine((1 + WARM_UP) / 2) == pytest.approx(0.5)
    assert warmup_cosine(1) == pytest.approx(0)
    climb = [warmup_cosine(x) for x in np.linspace(0, WARM_UP, 50)]
    fall = [warmup_cosine(x) for x in np.linspace(WARM_UP, 1, 200)]
    assert np.all(np.diff(climb) > 0)
    assert np.all(np.diff(fall) < 0)


def test_the_average_of_weights_is_exponential() -> None:
    net = fresh_net()
    average = moving_average(net, window=4)
    expected = {key: value.detach().clone() for key, value in net.named_parameters()}
    for seed in (1, 2):
        net.load_state_dict(uneven(fresh_net(), seed).state_dict())
        average.update_parameters(net)
        for key, value in net.named_parameters():
            expected[key] = 0.75 * expected[key] + 0.25 * value.detach()
    for key, value in average.module.named_parameters():
        torch.testing.assert_close(value.detach(), expected[key])


def test_what_is_measured_is_the_average_of_the_last_steps() -> None:
    net = fresh_net()
    learner = Learner(
        net, BCEWithLogitsLoss(), 1e-2, steps=20, device=CPU, processes=ALONE
    )  # memory 4
    expected = {key: value.detach().clone() for key, value in net.named_parameters()}
    photos, masks = noise(2, 3, 64, 64), (noise(2, 1, 64, 64, seed=1) > 0).float()
    for _ in range(3):
        learner.step(photos, masks, 1.0)
        for key, value in net.named_parameters():
            expected[key] = 0.75 * expected[key] + 0.25 * value.detach()
    measured = dict(learner.averaged(None, [photos]).named_parameters())
    for key, value in measured.items():
        torch.testing.assert_close(value.detach(), expected[key], msg=key)
    assert any(not torch.equal(measured[key], value) for key, value in net.named_parameters())


def test_the_net_measured_computes_exactly_what_it_will_when_it_is_loaded(tmp_path: Path) -> None:
    net = fresh_net()
    with torch.no_grad():
        net.stage2d.rebnconv1d.bn_s1.bias[0] = 300  # large only after the net was built, if learnt
    learner = Learner(net, BCEWithLogitsLoss(), 1e-4, steps=20, device=CPU, processes=ALONE)
    measured = learner.averaged(None, [noise(2, 3, 64, 64)])
    weights.save(measured, tmp_path / "net.pth")
    loaded = weights.load("u2netp", tmp_path / "net.pth")
    exact = [getattr(module, "exact", None) for module in measured.modules()]
    assert True in exact
    assert exact == [getattr(module, "exact", None) for module in loaded.modules()]


def test_a_memory_of_one_step_is_the_net_itself() -> None:
    net = fresh_net()
    average = moving_average(net, window=0.4)
    net.load_state_dict(uneven(fresh_net()).state_dict())
    average.update_parameters(net)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(average.module.state_dict()[key], value)


def test_the_learning_rate_runs_through_its_whole_schedule(
    monkeypatch: pytest.MonkeyPatch, scripted: Callable[..., Script]
) -> None:
    rates = []

    def record(
        net: nn.Module, criterion: nn.Module, optimizer: torch.optim.Optimizer, *_: object
    ) -> float:
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        return 0.0

    scripted(*[0.5] * 11)
    monkeypatch.setattr(learner, "train_step", record)
    run(tiny(epochs=10, learning_rate=0.2))
    # Three photos in batches of two: two steps an epoch, each at the middle of its share.
    expected = [0.2 * warmup_cosine((i + 0.5) / 20) for i in range(20)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("init", "scenes"), [("u2netp", True), ("scratch", False)])
def test_only_a_net_that_knows_cars_learns_from_staged_looks(
    init: str, scenes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    stage = Samples._vary_scene
    monkeypatch.setattr(
        Samples, "_vary_scene", lambda self, *arguments: calls.append(0) or stage(self, *arguments)
    )
    train("bce", fresh_net(), BCEWithLogitsLoss(), tiny(init=init, epochs=1), Path())
    assert bool(calls) == scenes


@pytest.mark.usefixtures("whole")
def test_a_probe_measures_at_each_photos_own_size_and_cars_as_they_stand() -> None:
    pairs = read_manifest(Path("split/val.csv"))
    net = uneven(fresh_net())
    score = Probe(pairs, tiny(threshold=0.4), Path()).measure(net.train(), DiceLoss(), CPU)
    losses, dices, ious, lying = [], [], [], []
    plain = Squares(pairs, 64, Path())
    for pair, (photo, mask) in zip(pairs, plain, strict=True):

        def look(square: Tensor) -> Tensor:
            with torch.inference_mode():
                return torch.sigmoid(net(square)[:, :1])

        with torch.inference_mode():
            logits = net.eval()(photo[None])
        losses.append(DiceLoss()(logits, mask[None]).item())
        truth = np.asarray(Image.open(pair.mask)) > 0
        first = look(photo[None])
        lying.append(on_its_side(first[0], truth.shape))
        seen = stand_up(look, photo, first, truth.shape)[None]
        scaled = nn.functional.interpolate(seen, truth.shape, mode="bilinear")
        found = scaled[0, 0].numpy() >= 0.4
        dices.append(f1_score(truth.ravel(), found.ravel()))
        ious.append(jaccard_score(truth.ravel(), found.ravel()))
    assert 0 < min(ious) < max(ious) < 1
    assert set(lying) == {False, True}, "else it is not seen that they are looked at otherwise"
    assert score == pytest.approx((np.mean(losses), np.mean(dices), np.mean(ious)))


def test_what_is_kept_lies_between_what_was_learnt_and_what_is_remembered() -> None:
    params, remembered = tiny(keep="last"), Remembered(uneven(fresh_net(1), 2), 0.6)
    learnt = learnt_by(params)
    train("bce", fresh_net(), BCEWithLogitsLoss(), params, Path(), remembered=remembered)
    kept = weights.load("u2netp", OUTPUT)
    origin = dict(remembered.net.named_parameters())
    for key, value in kept.named_parameters():
        expected = 0.4 * learnt[key] + 0.6 * origin[key]
        torch.testing.assert_close(value, expected, msg=key)
    # What is measured is what is kept, and the start is what it began as.
    probe = Probe(read_manifest(Path("split/val.csv")), params, Path())
    for net, row in ((weights.load("u2netp", OUTPUT), -1), (fresh_net(), 0)):
        measured = probe.measure(net, BCEWithLogitsLoss(), CPU)
        assert curve()[row]["val_loss"] == pytest.approx(measured.loss, abs=2e-6)


@pytest.mark.parametrize("remembers", [False, True])
def test_batch_norms_of_what_is_kept_are_measured_on_unchanged_photos(remembers: bool) -> None:
    remembered = Remembered(uneven(fresh_net(1), 2), 0.6) if remembers else None
    train("bce", fresh_net(), BCEWithLogitsLoss(), tiny(keep="last"), Path(), remembered=remembered)
    kept = weights.load("u2netp", OUTPUT).train()
    pairs = read_manifest(Path("split/train.csv"))
    looks = list(batch_norm_batches(Squares(pairs, 64, Path()), len(pairs)))
    layer = kept.stage1.rebnconvin  # the first that a photo meets
    with torch.inference_mode():
        outputs = [layer.conv_s1(look) for look in looks]  # (N, C, H, W) each
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in outputs])
    variances = torch.stack([x.var(dim=(0, 2, 3)) for x in outputs])
    torch.testing.assert_close(layer.bn_s1.running_mean, means.mean(dim=0))
    torch.testing.assert_close(layer.bn_s1.running_var, variances.mean(dim=0))


@pytest.fixture
def rendered() -> list[Pair]:
    """Two more pairs that train along."""
    names = write_pairs(Path("renderings/Image"), Path("renderings/Mask"), 2)
    rows = [(f"renderings/Image/{name}.jpg", f"renderings/Mask/{name}.png") for name in names]
    write_csv(Path("renderings/pairs.csv"), ("photo", "mask"), rows)
    return read_manifest(Path("renderings/pairs.csv"))


def test_renderings_train_along_and_nothing_is_measured_on_them(
    rendered: list[Pair], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_pairs = read_manifest(Path("split/train.csv"))
    met: dict[str, list[Pair]] = {}

    class Noted(Squares):
        def __init__(self, pairs: Sequence[Pair], *arguments: Any) -> None:
            super().__init__(pairs, *arguments)
            met["learnt"] = list(pairs)

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            met.setdefault("plain", []).append(met["learnt"][i])
            return super().__getitem__(i)

    class NotedProbe(Probe):
        def __init__(self, pairs: Sequence[Pair], *arguments: Any) -> None:
            super().__init__(pairs, *arguments)
            met.setdefault("measured", []).extend(pairs)

    monkeypatch.setattr(material, "Squares", Noted)
    monkeypatch.setattr(material, "Probe", NotedProbe)
    run(tiny(renderings=2))
    assert met["learnt"] == [*train_pairs, *rendered]
    assert set(met["plain"]) == set(train_pairs)
    assert not set(met["measured"]) & set(rendered)
    assert "bce: 3 photos and 2 renderings, 2 epochs" in capsys.readouterr().out


def test_renderings_change_what_is_learnt_and_the_state_that_is_gone_on_from(
    rendered: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_them, without = run(tiny(renderings=2)), run(tiny())
    assert with_them[0] != without[0]
    digests: list[list[Pair]] = []

    def note(*arguments: Any) -> str:
        digests.extend(arguments[3])
        return fingerprint(*arguments)

    monkeypatch.setattr(training, "fingerprint", note)
    run(tiny(renderings=2))
    parts = [read_manifest(Path(f"split/{part}.csv")) for part in ("train", "val")]
    assert digests == [*parts, rendered]


@pytest.mark.usefixtures("rendered")
def test_renderings_of_another_run_are_refused() -> None:
    with pytest.raises(CarsegError) as error:
        run(tiny(renderings=3))
    said = "renderings/pairs.csv: has 2 pairs, but renderings is 3; run dvc repro"
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("photos", "looks"), [(1, 16), (3, 16), (4, 16), (8, 16), (15, 16), (18, 16), (70, 64)]
)
def test_half_of_the_photos_that_batch_norms_are_measured_on_are_turned(
    photos: int, looks: int, tmp_path: Path
) -> None:
    write_manifests(tmp_path / "more", train=photos, val=1)
    pairs = [
        Pair(f"{tmp_path}/more/{pair.photo_file}", f"{tmp_path}/more/{pair.mask_file}")
        for pair in read_manifest(tmp_path / "more/split/train.csv")
    ]
    squares = Squares(pairs, 64, Path())
    plain = [photo for photo, _ in squares]
    batches = list(batch_norm_batches(squares, photos))
    assert {len(batch) for batch in batches} == {BN_BATCH}
    found = torch.cat(batches)
    assert len(found) == looks
    for i, look in enumerate(found):
        # Photos that would be seen again in the turn they were seen in get the other one.
        again = i // photos if photos in (4, 8) else 0
        quarters = (0, 0, 1, 3)[(i + 2 * again) % 4]
        photo = plain[i * photos // 64 if photos > 64 else i % photos]  # 64 are evenly picked
        assert torch.equal(look, torch.rot90(photo, quarters, (1, 2)))


@pytest.fixture
def pretrained() -> None:
    """Weights to start from, as of somebody else's training."""
    weights.save(fresh_net(7), Path("pretrained/own.pth"))


@pytest.mark.usefixtures("pretrained")
def test_the_second_task_goes_on_where_the_first_one_ended() -> None:
    params = tiny(epochs=1, learning_rate=1e-3)
    train_bce(params)
    train_dice(params)
    first, second = curve(Path("plots/bce.csv")), curve(Path("plots/dice.csv"))
    assert second[0]["val_iou"] == max(row["val_iou"] for row in first)
    best = max(row["val_iou"] for row in second)
    net = weights.load("u2netp", Path("u2net_segmentation_dice_loss.pth"))
    probe = Probe(read_manifest(Path("split/val.csv")), params, Path())
    assert probe.measure(net, DiceLoss(), CPU).iou == pytest.approx(best, abs=2e-6)
    # Each task's losses are its own: what task 2 begins with, BCE and Dice measure differently.
    start = weights.load("u2netp", Path("u2net_segmentation.pth"))
    assert second[0]["val_loss"] == pytest.approx(
        probe.measure(start, DiceLoss(), CPU).loss, abs=2e-6
    )
    assert first[1]["val_loss"] != second[0]["val_loss"]


@pytest.mark.usefixtures("pretrained")
def test_where_no_epoch_validates_better_the_second_task_keeps_the_first_ones_weights(
    scripted: Callable[..., Script],
) -> None:
    first = fresh_net()
    weights.save(first, Path(TRAINED["bce"]))
    scripted(0.9, 0.2, 0.1)
    train_dice(tiny(init="own.pth"))
    kept = weights.load("u2netp", Path(TRAINED["dice"])).state_dict()
    assert all(torch.equal(kept[key], value) for key, value in first.state_dict().items())


@pytest.mark.usefixtures("pretrained")
@pytest.mark.parametrize(("init", "settled"), [("u2netp", True), ("scratch", False)])
def test_only_given_weights_are_settled_and_begin_as_given(
    init: str, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[U2Net] = []

    def record(task: str, net: U2Net, criterion: nn.Module, *_: object, **__: object) -> None:
        assert (task, type(criterion)) == ("bce", BCEWithLogitsLoss)
        begun.append(net)

    monkeypatch.setattr(training, "train", record)
    train_bce(tiny(init=init))
    given = weights.start("u2netp", Path("pretrained"), TINY.seed).eval()
    photos = noise(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(begun[0].eval()(photos), given(photos), rtol=1e-3, atol=1e-3)
    key = "stage1.rebnconvin.bn_s1.running_mean"
    assert torch.equal(begun[0].state_dict()[key], given.state_dict()[key]) != settled
    if settled:  # on the training photos, as nets are given them
        looks = [look for look, _ in Squares(read_manifest(Path("split/train.csv")), 64, Path())]
        with torch.inference_mode():
            seen = given.stage1.rebnconvin.conv_s1(torch.stack(looks))
        found = begun[0].state_dict()
        torch.testing.assert_close(found[key], seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("pretrained")
def test_the_second_task_remembers_earlier_and_given_weights_but_from_scratch_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Remembered | None] = []
    monkeypatch.setattr(training, "train", lambda *_, remembered, **__: seen.append(remembered))
    weights.save(fresh_net(), Path("u2net_segmentation.pth"))
    for init in ("u2netp", "scratch"):
        train_dice(tiny(init=init))
    remembered, nothing = seen
    assert nothing is None
    assert remembered is not None
    assert remembered.share == UNTRAINED_SHARE + TASK_1_SHARE
    settled = calibrated_start(tiny(init="u2netp"))
    before = dict(fresh_net().named_parameters())
    for key, value in remembered.net.named_parameters():
        untrained = settled.get_parameter(key)
        expected = (UNTRAINED_SHARE * untrained + TASK_1_SHARE * before[key]) / (
            UNTRAINED_SHARE + TASK_1_SHARE
        )
        torch.testing.assert_close(value, expected, msg=key)


@pytest.mark.usefixtures("pretrained")
@pytest.mark.parametrize("task", [train_bce, train_dice])
def test_what_is_recorded_reaches_the_training(
    task: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing would be checked at its end, nor code be in the name of its state."""
    seen: list[object] = []
    monkeypatch.setattr(training, "train", lambda *_, recorded, **__: seen.append(recorded))
    weights.save(fresh_net(), Path("u2net_segmentation.pth"))
    recorded = Mock(spec=Recorded)
    task(tiny(init="scratch"), recorded)
    assert seen == [recorded]


class Elsewhere(Device):
    """Stands in for a GPU: torch's meta device, which computes shapes alone."""

    def place(self, x: Tensor) -> Tensor:
        return x.to("meta")

    def place_net(self, net: Net) -> Net:
        return net.to("meta")


def test_what_the_second_task_begins_with_meets_on_any_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Remembered] = []
    monkeypatch.setattr(training, "Device", Elsewhere)
    monkeypatch.setattr(training, "train", lambda *_, remembered, **__: seen.append(remembered))
    # Not the published weights, which ask for the device's autocast, and meta has none.
    for seed, path in enumerate(("pretrained/own.pth", "u2net_segmentation.pth")):
        weights.save(fresh_net(seed), Path(path))
    train_dice(tiny(init="own.pth"))
    (remembered,) = seen
    assert {value.device.type for value in remembered.net.state_dict().values()} == {"meta"}


@pytest.mark.usefixtures("pretrained")
@pytest.mark.parametrize(("rate", "second"), [(2e-3, MAX_DICE_RATE), (1e-4, 1e-4)])
def test_the_second_task_learns_at_a_fine_rate_at_most(
    rate: float, second: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def record(
        task: str, net: U2Net, criterion: nn.Module, params: Params, *_: object, **__: object
    ) -> None:
        assert (task, type(criterion)) == ("dice", DiceLoss)
        rates.append(params.learning_rate)

    monkeypatch.setattr(training, "train", record)
    weights.save(fresh_net(), Path("u2net_segmentation.pth"))
    train_dice(tiny(learning_rate=rate))
    assert rates == [second]


class Beside(Processes):
    """One of several processes, whose last one computes in bfloat16."""

    def all_gather(self, share: Sequence[Any]) -> list[Any]:
        return [*share, *share, "cpu in bfloat16"]


@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_compute_otherwise_are_told_of_by_each(rank: int) -> None:
    line = "^precision: processes compute on cpu in bfloat16, cpu in float32; set it, and give "
    with pytest.raises(CarsegError, match=line):
        train("bce", fresh_net(), DiceLoss(), TINY, Path(), processes=Beside(rank, 3))


class Later(Processes):
    """One of two processes, whose last one has read another params.yaml."""

    def all_gather(self, share: Sequence[Any]) -> list[Any]:
        other = [item.replace("seed=42", "seed=43") if isinstance(item, str) else item
                 for item in share]  # fmt: skip
        return [*share, *other]


def test_processes_that_read_other_parameters_are_told_of() -> None:
    line = r"^params\.yaml: was changed while processes began; run again$"
    with pytest.raises(CarsegError, match=line):
        train("bce", fresh_net(), DiceLoss(), tiny(seed=42), Path(), processes=Later(0, 2))


def test_processes_without_work_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "prepare", Mock(side_effect=KeyboardInterrupt))
    monkeypatch.setattr(Processes, "all_gather", lambda self, share: 3 * [*share])
    for count, told in ((2, 0), (3, 1)):
        with pytest.raises(KeyboardInterrupt):
            train("bce", fresh_net(), DiceLoss(), TINY, Path(), processes=Processes(0, count))
        said = capsys.readouterr().err
        assert said.count("batch_size: 2 is less than 3 processes, of which some") == told


def test_a_missing_manifest_is_named() -> None:
    Path("split/val.csv").unlink()
    with pytest.raises(CarsegError, match=r"split/val\.csv"):
        run()


class Second(Processes):
    """One of two processes, which both compute the same."""

    def all_gather(self, share: Sequence[Any]) -> list[Any]:
        return [*share, *share]

    def sum(self, value: float) -> float:
        return value

    def wrap_ddp(self, net: nn.Module) -> nn.Module:
        return net


def test_a_loss_without_an_end_ends_every_process_and_only_the_first_writes() -> None:
    for rank in (1, 0):
        with pytest.raises(CarsegError, match=r"^bce: the loss is nan in epoch 1"):
            train("bce", fresh_net(), Broken(math.nan, 1), TINY, Path(), processes=Second(rank, 2))
        assert OUTPUT.exists() == (rank == 0)


def test_a_loss_without_an_end_in_another_process_ends_every_process() -> None:
    class BesideABroken(Second):
        def sum(self, value: float) -> float:
            return value + math.nan

    for rank in (1, 0):
        with pytest.raises(CarsegError, match=r"^bce: the loss is nan in epoch 1"):
            train("bce", fresh_net(), DiceLoss(), TINY, Path(), processes=BesideABroken(rank, 2))


def test_only_the_first_process_writes_and_speaks(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    before, scratch = sorted(Path().rglob("*")), tmp_path_factory.mktemp("scratch")
    train("bce", fresh_net(), DiceLoss(), TINY, scratch, processes=Second(1, 2))
    assert sorted(Path().rglob("*")) == before
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_a_pixel_at_the_threshold_is_car_in_the_curve() -> None:
    class Unsure(nn.Module):
        def forward(self, photos: Tensor) -> Tensor:
            return torch.zeros(len(photos), 7, *photos.shape[2:])  # the probability is 0.5

    pairs = read_manifest(Path("split/val.csv"))
    probe = Probe(pairs, TINY, Path())
    shares = [(np.asarray(Image.open(pair.mask)) > 0).mean() for pair in pairs]
    assert probe.measure(Unsure(), DiceLoss(), CPU).iou == pytest.approx(np.mean(shares))


def test_a_learner_is_adam_at_the_rate_of_its_schedule() -> None:
    photos, masks = noise(2, 3, 64, 64), (noise(2, 1, 64, 64) > 0).float()
    net, twin, steps = fresh_net(), CPU.place_net(fresh_net()), 3
    subject = Learner(net, DiceLoss(), 1e-3, steps, CPU, ALONE)
    adam = torch.optim.Adam(twin.parameters(), fused=True)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 1e-3 * warmup_cosine((step + 0.5) / steps)
        expected = train_step(twin, DiceLoss(), adam, CPU, photos, masks)
        assert subject.step(photos, masks, 1.0) == expected
    for value, wanted in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(value, wanted)


@pytest.mark.parametrize("format", [torch.float32, torch.bfloat16])
def test_statistics_and_scores_are_computed_as_masks_are(format: torch.dtype) -> None:
    """In the device's number format, and in its layout: photos left behind would stop a GPU."""
    device = Device(str(format).removeprefix("torch."), "cpu")
    pairs = read_manifest(Path("split/val.csv"))
    net = fresh_net()
    subject = Learner(net, DiceLoss(), 1e-3, 1, device, ALONE)
    probe = Probe(pairs, TINY, Path())
    photos = noise(2, 3, 64, 64)
    formats: list[torch.dtype] = []
    placed: list[bool] = []

    def note(module: nn.Module, given: tuple[Tensor], made: object) -> None:
        if isinstance(module, nn.Conv2d) and isinstance(made, Tensor):
            formats.append(made.dtype)
        if isinstance(module, U2Net):
            placed.append(given[0].is_contiguous(memory_format=torch.channels_last))

    def compute(call: Callable[[], object]) -> None:
        formats.clear()
        placed.clear()
        hook = torch.nn.modules.module.register_module_forward_hook(note)
        call()
        hook.remove()
        assert formats.count(format) > len(formats) / 2, "but for the layers that must be exact"
        assert placed
        assert all(placed)

    compute(lambda: subject.averaged(None, [photos]))
    compute(lambda: probe.measure(net, DiceLoss(), device))
    compute(lambda: calibrate_batch_norm(net, [photos], device))
    compute(lambda: probability(net.eval(), photos, device))


@pytest.mark.parametrize("begin", [train_bce, calibrated_start])
def test_trainings_compute_in_the_precision_of_the_parameters(
    begin: Callable[[Params], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("pretrained").mkdir()
    weights.save(fresh_net(), Path("pretrained/net.pth"))
    monkeypatch.setattr(training, "Device", Mock(side_effect=CarsegError("asked")))
    with pytest.raises(CarsegError, match="asked"):
        begin(tiny(precision="bfloat16", init="scratch" if begin is train_bce else "official"))
    training.Device.assert_called_once_with("bfloat16")  # type: ignore[attr-defined]
