"""Scores, tables and overlays of the validation photos."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import contents, uneven, write_manifests
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import label
from sklearn.metrics import f1_score, jaccard_score

from carseg import evaluate as evaluation
from carseg import weights
from carseg.clean import clean
from carseg.columns import TASKS
from carseg.curve import COLUMNS
from carseg.device import Device
from carseg.edges import boundary_iou, hd95
from carseg.errors import CarsegError
from carseg.evaluate import evaluate, lies, predict_masks, probability_at
from carseg.files import read_csv, write_csv
from carseg.overlay import FALSE_NEGATIVE, FALSE_POSITIVE, LONG_SIDE, TRUE_POSITIVE, overlay
from carseg.pairs import read_manifest
from carseg.params import Params
from carseg.photos import read_photo, read_truth
from carseg.recorded import Recorded
from carseg.u2net import U2Net

Mask = NDArray[np.bool_]

NETS = ("untrained", "bce", "dice")
VIEWS = ("plain", "upright", "closer", "d4", "d4_closer")
SCORES = ("dice", "iou", "dice_micro", "iou_micro", "boundary_iou", "hd95")
PHOTO_SCORES = ("dice", "iou", "boundary_iou", "hd95")
TURNS = (
    *("turn90", "turn180", "turn270"),
    *("upright_turn90", "upright_turn180", "upright_turn270"),
    *("closer_turn90", "closer_turn180", "closer_turn270"),
)
FILES = {
    "untrained": Path("pretrained/mine.pth"),
    "bce": Path("u2net_segmentation.pth"),
    "dice": Path("u2net_segmentation_dice_loss.pth"),
}
TINY = Params(model="u2netp", image_size=64, precision="float32", threshold=0.45)
VAL = ("1", "2", "3")


@pytest.fixture(scope="module")
def nets() -> dict[str, U2Net]:
    """Three nets that find different things."""
    return {name: uneven(U2Net("u2netp"), seed) for seed, name in zip((0, 1, 3), NETS, strict=True)}


def prepare(root: Path, nets: dict[str, U2Net]) -> None:
    write_manifests(root, train=1, val=3)
    for task in TASKS:
        level = 0.4 + 0.1 * TASKS.index(task)
        rows = [(epoch, *[round(level + 0.01 * epoch, 6)] * 6) for epoch in range(3)]
        write_csv(root / f"plots/{task}.csv", COLUMNS, rows)
    for name, net in nets.items():
        weights.save(net, root / FILES[name])


REPORTED: dict[str, Any] = {}  # what the report of `results` was given


@pytest.fixture(scope="module")
def results(nets: dict[str, U2Net], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that was evaluated once, where an earlier run had left an overlay."""
    write = evaluation.write_report

    def write_report(path: Path, **given: Any) -> None:
        REPORTED.update(given)
        write(path, **given)

    root = tmp_path_factory.mktemp("evaluated")
    prepare(root, nets)
    (root / "plots/overlays").mkdir(parents=True)
    (root / "plots/overlays/old_bce.jpg").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(evaluation, "write_report", write_report)
        evaluate(TINY)
    return root


@pytest.fixture
def evaluated(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in that project."""
    monkeypatch.chdir(results)


@pytest.fixture
def perfect(nets: dict[str, U2Net], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Be in a project whose nets find each car to the pixel."""

    monkeypatch.chdir(tmp_path)
    prepare(tmp_path, nets)
    pairs = read_manifest(Path("split/val.csv"))
    truths = {read_photo(pair.photo).tobytes(): read_truth(pair.mask) for pair in pairs}

    def find(net: U2Net, photo: Image.Image, params: Params, device: Device) -> dict[str, Mask]:
        return dict.fromkeys((*VIEWS, *TURNS), truths[photo.tobytes()])

    monkeypatch.setattr(evaluation, "predict_masks", find)


@pytest.mark.usefixtures("perfect")
@pytest.mark.parametrize(
    ("meanwhile", "left_out"),
    [
        (
            "probability_at",
            ("metrics.json", "report.html", "plots/overlays", "plots/scores.csv", "provenance"),
        ),
        ("write_report", ("metrics.json", "provenance")),  # when the rest is there
    ],
)
def test_a_parameter_changed_meanwhile_ends_a_run_without_results(
    meanwhile: str, left_out: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("dvc.yaml").write_text("stages: {evaluate: {params: [threshold]}}")
    Path("params.yaml").write_text("threshold: 0.45\n")
    recorded = Recorded("evaluate")

    def edit(*_: object, **__: object) -> NDArray[np.float32]:
        Path("params.yaml").write_text("threshold: 0.3\n")
        return np.zeros((40, 60), np.float32)

    monkeypatch.setattr(evaluation, meanwhile, edit)
    with pytest.raises(CarsegError, match=r"^params\.yaml: threshold was changed while this ran"):
        evaluate(TINY, recorded)
    assert not any(Path(name).exists() for name in left_out)


def scores() -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = json.loads(Path("metrics.json").read_text())
    return found


def predicted(
    net: U2Net, name: str, quarters: Sequence[int] = (0,), flips: int = 1, then: str = ""
) -> Mask:
    """What a net finds in a validation photo, by other means than the project's."""
    with Image.open(f"dataset/Image/{name}.jpg") as photo:
        share = seen(net, photo, quarters, flips)
        if then in ("upright", "closer") and flips == 1:
            places = np.argwhere(in_square(net, photo, quarters, flips) >= 0.5) / 64
            as_held = (places * (photo.height, photo.width))[:, :: -1 if quarters[0] % 2 else 1]
            if len(places) and upright(as_held.std(axis=0), (0, 3)) == [3]:
                share = seen(net, photo, (quarters[0], quarters[0] + 3), flips)
        if then == "closer":
            places, quarters = np.argwhere(share >= 0.5), range(4)
            if len(places):
                quarters = upright(places.std(axis=0), range(4))
            else:
                places = np.argwhere(np.ones_like(share))
            (top, left), (bottom, right) = places.min(axis=0), places.max(axis=0) + 1
            down, across = round((bottom - top) / 10), round((right - left) / 10)
            top, left = max(0, top - down), max(0, left - across)
            bottom, right = min(photo.height, bottom + down), min(photo.width, right + across)
            box = photo.crop((left, top, right, bottom))
            before = scaled(share[top:bottom, left:right], (64, 64))
            share = share.copy()
            again = average([before, *looks(net, box, quarters, flips)])
            share[top:bottom, left:right] = scaled(again, (bottom - top, right - left))
    return np.asarray(share >= 0.45)


def upright(car: np.ndarray, quarters: Sequence[int]) -> list[int]:
    """Those quarter turns in which a car of this height and width is wider than high."""
    height, width = car
    clear = max(height, width) > 1.25 * min(height, width)
    left = [quarter for quarter in quarters if (height > width) == (quarter % 2 == 1)]
    return left if clear and left else list(quarters)


def seen(net: U2Net, photo: Image.Image, quarters: Sequence[int], flips: int) -> np.ndarray:
    return scaled(in_square(net, photo, quarters, flips), (photo.height, photo.width))


def scaled(share: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    batch = torch.from_numpy(share.copy())[None, None]
    return torch.nn.functional.interpolate(batch, size, mode="bilinear")[0, 0].numpy()


def in_square(net: U2Net, photo: Image.Image, quarters: Sequence[int], flips: int) -> np.ndarray:
    return average(looks(net, photo, quarters, flips))


def looks(net: U2Net, photo: Image.Image, quarters: Sequence[int], flips: int) -> list[np.ndarray]:
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    square = np.asarray(photo.resize((64, 64), Image.Resampling.LANCZOS), np.float64)
    pixels = (square / square.max() - mean) / deviation
    found = []
    for quarter in quarters:
        for flip in range(flips):
            view = np.rot90(pixels, quarter)[:, :: -1 if flip else 1]
            tensor = torch.from_numpy(view.copy()).permute(2, 0, 1).float()
            with torch.inference_mode():
                share = torch.sigmoid(net(tensor[None])[0, 0]).numpy()
            found.append(np.rot90(share[:, :: -1 if flip else 1], -quarter))
    return found


def average(found: Sequence[np.ndarray]) -> np.ndarray:
    if len(found) <= 2:
        sure = np.array([np.abs(2 * share - 1).mean() for share in found])
        return np.average(found, axis=0, weights=np.exp(100 * (sure - sure.max())))
    cars = [2 * share[share >= 0.5] - 1 for share in found]
    least = max(1, max(car.size for car in cars) // 8)
    sure = np.array([car.sum() / max(least, car.size) for car in cars])
    weights = np.exp(50 * (sure - sure.max()))
    return np.average(found, axis=0, weights=weights)


@pytest.mark.usefixtures("evaluated")
def test_scores_are_those_of_a_second_computation(nets: dict[str, U2Net]) -> None:
    metrics, rows = scores(), read_csv(Path("plots/scores.csv"))
    truths = [np.asarray(Image.open(f"dataset/Mask/{name}.png")) > 0 for name in VAL]
    for name, net in nets.items():
        for view in VIEWS:
            quarters, flips = (range(4), 2) if "d4" in view else ((0,), 1)
            then = view.removeprefix("d4_")
            masks = [predicted(net, photo, quarters, flips, then) for photo in VAL]
            pairs = [(t.ravel(), m.ravel()) for t, m in zip(truths, masks, strict=True)]
            dices, ious = ([ratio(*pair) for pair in pairs] for ratio in (f1_score, jaccard_score))
            together = [np.concatenate(parts) for parts in zip(*pairs, strict=True)]
            # A pixel at the very threshold may fall to either side.
            edges = {
                key: [measure(m, t) for t, m in zip(truths, masks, strict=True)]
                for key, measure in (("boundary_iou", boundary_iou), ("hd95", hd95))
            }
            for key, values in edges.items():
                column = [float(row[f"{name}_{view}_{key}"]) for row in rows]
                assert column == pytest.approx(values, rel=0.05, abs=0.02)
                assert metrics[name][view].pop(key) == pytest.approx(np.mean(column), abs=1e-5)
            assert metrics[name][view] == pytest.approx(
                {
                    "dice": np.mean(dices),
                    "iou": np.mean(ious),
                    "dice_micro": f1_score(*together),
                    "iou_micro": jaccard_score(*together),
                },
                abs=1e-3,
            )
            for key, expected in (("dice", dices), ("iou", ious)):
                column = [float(row[f"{name}_{view}_{key}"]) for row in rows]
                assert column == pytest.approx(expected, abs=1e-3)
        for at, turn in enumerate(TURNS):
            column = [float(row[f"{name}_{turn}_iou"]) for row in rows]
            then = turn.split("_")[0]
            masks = [predicted(net, photo, (at % 3 + 1,), then=then) for photo in VAL]
            expected = [
                jaccard_score(t.ravel(), m.ravel()) for t, m in zip(truths, masks, strict=True)
            ]
            assert column == pytest.approx(expected, abs=1e-3)
    assert len({round(views["plain"]["iou"], 2) for views in metrics.values()}) == 3
    differ = [
        row[f"{net}_upright_{turn}_iou"] != row[f"{net}_{turn}_iou"]
        for row in rows for net in NETS for turn in TURNS[:3]
    ]  # fmt: skip
    assert any(differ), "else no car lies in what is found"
    assert not all(differ), "else none stands"


@pytest.mark.usefixtures("evaluated")
def test_every_net_view_and_score_is_there_in_order() -> None:
    metrics = scores()
    assert list(metrics) == list(NETS)
    assert all(list(views) == list(VIEWS) for views in metrics.values())
    for views in metrics.values():
        for found in views.values():
            assert list(found) == list(SCORES)
            assert all(0 <= value <= 1 for key, value in found.items() if key != "hd95")
    rows = read_csv(Path("plots/scores.csv"))
    assert [row["photo"] for row in rows] == list(VAL)
    columns = []
    for net in NETS:
        columns += [f"{net}_{view}_{name}" for view in VIEWS for name in PHOTO_SCORES]
        columns += [f"{net}_{turn}_iou" for turn in TURNS]
    assert list(rows[0]) == ["photo", "lying", *columns]
    assert [row["lying"] for row in rows] == ["0", "0", "1"]


@pytest.mark.usefixtures("evaluated")
def test_overlays_are_there_for_both_tasks_and_no_old_ones() -> None:
    paths = sorted(path.name for path in Path("plots/overlays").iterdir())
    assert paths == sorted(f"{name}_{task}.jpg" for name in VAL for task in ("bce", "dice"))
    for name in VAL:
        with Image.open(f"dataset/Image/{name}.jpg") as photo:
            for task in ("bce", "dice"):
                with Image.open(f"plots/overlays/{name}_{task}.jpg") as picture:
                    assert picture.size == photo.size


@pytest.mark.usefixtures("evaluated")
def test_the_overlay_shows_what_its_own_task_found(nets: dict[str, U2Net]) -> None:
    truth = read_truth(Path("dataset/Mask/3.png"))
    with Image.open("dataset/Image/3.jpg") as photo:
        expected = {
            task: np.asarray(overlay(photo, predicted(nets[task], "3", then="upright"), truth))
            for task in ("bce", "dice")
        }
    for task, other in (("bce", "dice"), ("dice", "bce")):
        with Image.open(f"plots/overlays/3_{task}.jpg") as picture:
            shown = np.asarray(picture).astype(int)
        difference = shown - expected[task]
        assert np.abs(difference).mean() < np.abs(shown - expected[other]).mean()
        assert np.abs(difference).mean() < 12


@pytest.mark.usefixtures("evaluated")
def test_the_probability_shown_is_that_of_the_overlay(nets: dict[str, U2Net]) -> None:
    pair, device = read_manifest(Path("split/val.csv"))[2], Device("float32")
    seen = probability_at(nets["bce"], pair, TINY, device) >= TINY.threshold
    assert (seen != predicted(nets["bce"], "3", then="upright")).mean() < 1e-3
    assert (seen != predicted(nets["bce"], "3")).mean() > 0.05, "the car lies in one look"


@pytest.mark.usefixtures("evaluated")
def test_the_report_shows_the_second_task_cars_stood_up_worst_first(nets: dict[str, U2Net]) -> None:
    rows = {row["photo"]: row for row in read_csv(Path("plots/scores.csv"))}
    shown = REPORTED["shown"]
    assert len(shown) == len(VAL)
    assert [one.iou for one in shown] == sorted(one.iou for one in shown)
    assert len({one.iou for one in shown}) == len(VAL), "else the order proves nothing"
    for one in shown:
        row = rows[one.name]
        assert one.iou == pytest.approx(float(row["dice_upright_iou"]), abs=1e-5)
        assert one.untrained == pytest.approx(float(row["untrained_upright_iou"]), abs=1e-5)
        with Image.open(io.BytesIO(base64.b64decode(one.probability.split(",")[1]))) as picture:
            found = np.asarray(picture.convert("L")) >= 255 * TINY.threshold
        assert (found == predicted(nets["dice"], one.name, then="upright")).mean() > 0.97
    for task in TASKS:
        assert REPORTED["curves"][task] == read_csv(Path(f"plots/{task}.csv"))


@pytest.mark.usefixtures("perfect")
def test_the_report_shows_only_so_many_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(TINY)
    whole = Path("report.html").read_text().count("data:image/jpeg")
    monkeypatch.setattr(evaluation, "SHOWN", 2)
    evaluate(TINY)
    assert Path("report.html").read_text().count("data:image/jpeg") == whole * 2 / len(VAL)
    assert len(read_csv(Path("plots/scores.csv"))) == len(VAL)


@pytest.mark.usefixtures("perfect")
def test_a_perfect_prediction_scores_one_everywhere() -> None:
    evaluate(TINY)
    for views in scores().values():
        for found in views.values():
            assert found == {name: 0.0 if name == "hd95" else 1.0 for name in SCORES}
    for row in read_csv(Path("plots/scores.csv")):
        for key, value in row.items():
            if key not in ("photo", "lying"):
                assert float(value) == (0 if key.endswith("hd95") else 1)


@pytest.mark.parametrize(("shape", "expected"), [((9, 5), True), ((5, 9), False), ((6, 6), False)])
def test_a_car_taller_than_wide_lies_on_its_side(shape: tuple[int, int], expected: bool) -> None:
    truth = np.zeros((20, 30), bool)
    truth[3 : 3 + shape[0], 8 : 8 + shape[1]] = True
    assert lies(truth) is expected
    assert not lies(np.zeros_like(truth))


@pytest.mark.usefixtures("evaluated")
def test_clean_up_is_done_when_asked(nets: dict[str, U2Net]) -> None:
    pair, device = read_manifest(Path("split/val.csv"))[0], Device("float32")
    photo = read_photo(pair.photo)
    as_found = predict_masks(nets["bce"], photo, TINY, device)
    assert any(label(mask)[1] > 1 for mask in as_found.values()), "else nothing is to be cleaned"
    cleaned = predict_masks(nets["bce"], photo, TINY.model_copy(update={"cleanup": True}), device)
    assert list(cleaned) == list(as_found) == [*VIEWS, *TURNS]
    for name, mask in cleaned.items():
        assert (mask == clean(as_found[name])).all()


@pytest.mark.usefixtures("perfect")
@pytest.mark.parametrize("name", ["bce", "dice"])
def test_missing_weights_are_named_and_old_results_stay(name: str) -> None:
    evaluate(TINY)
    before = contents(Path("plots"))
    FILES[name].unlink()
    with pytest.raises(CarsegError, match=FILES[name].name):
        evaluate(TINY)
    assert contents(Path("plots")) == before


def test_hits_and_errors_have_a_colour_each() -> None:
    photo = Image.new("RGB", (4, 3), (100, 50, 200))
    found, truth = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    found[0, 1] = truth[0, 1] = True
    found[1, 3] = True
    truth[2, 0] = True
    pixels = np.asarray(overlay(photo, found, truth)).astype(int)
    plain = np.array([100, 50, 200])
    for at, colour, strength in (
        ((0, 1), TRUE_POSITIVE, 0.45),
        ((1, 3), FALSE_POSITIVE, 0.9),
        ((2, 0), FALSE_NEGATIVE, 0.9),
    ):
        expected = plain + strength * (np.array(colour) - plain)
        assert np.abs(pixels[at] - expected).max() <= 1
        pixels[at] = plain
    assert (pixels == plain).all()
    assert np.asarray(photo)[0, 1].tolist() == [100, 50, 200]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1600, 1200), (640, 480)), ((600, 1280), (300, 640)), ((64, 48), (64, 48))],
)
def test_a_big_overlay_is_scaled_down(size: tuple[int, int], expected: tuple[int, int]) -> None:
    nothing = np.zeros(size[::-1], bool)
    assert overlay(Image.new("RGB", size), nothing, nothing).size == expected
    assert max(expected) <= LONG_SIDE


def test_masks_are_computed_in_the_precision_of_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "Device", Mock(side_effect=CarsegError("asked")))
    with pytest.raises(CarsegError, match="asked"):
        evaluate(TINY.model_copy(update={"precision": "bfloat16"}))
    evaluation.Device.assert_called_once_with("bfloat16")  # type: ignore[attr-defined]
