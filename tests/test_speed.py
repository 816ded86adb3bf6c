"""The benchmark runs, and its figures are those of its timings."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise, oriented, photo, uneven, write_manifests, write_pairs

from benchmarks import speed
from carseg import metrics, quantize, u2net, weights
from carseg.convolution import Conv3x3
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.metrics import iou
from carseg.pairs import read_manifest
from carseg.quantize import Calibration
from carseg.u2net import U2Net

pytestmark = pytest.mark.usefixtures("shallow")


@contextmanager
def here(make: Callable[..., Callable[..., object]], *given: object) -> Iterator[object]:
    yield make(*given)


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Multiply small matrices, and start no processes; gives what would start them."""
    start = speed.apart
    monkeypatch.setattr(speed, "SIDE", 64)
    monkeypatch.setattr(speed, "apart", here)
    return start


@pytest.mark.slow
def test_the_benchmark_times_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    words = ["--model", "u2netp", "--image-size", "64", "--batch", "2", "--rounds", "2"]
    result = speed.bench([*words, "--out", str(out)])
    assert json.loads(out.read_text()) == result
    timed = result["timed"]
    assert isinstance(timed, dict)
    assert [timed[name] for name in ("model", "image_size", "batch_size", "rounds")] == [
        "u2netp", 64, 2, 2
    ]  # fmt: skip
    assert "onnxruntime" in timed["engines"]
    assert "prediction, ONNX Runtime" in capsys.readouterr().out
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    assert all(
        0 < way["least"] <= way["median"] <= way["most"]
        for ways in seconds.values()
        for way in ways.values()
    )


def test_plain_layers_compute_the_same_and_are_gone_afterwards() -> None:
    net, photos = uneven(U2Net("u2netp")), noise(2, 3, 64, 96)
    ours = u2net.halve, u2net.resize, Conv3x3.forward
    gradients = []
    for layers in (nullcontext, speed.plain_layers):
        net.zero_grad()
        with layers():
            names = {type(node).__name__ for node in nodes(net(photos).sum().grad_fn)}
            net(photos).square().mean().backward()
        assert ("DoubleBackward" in names) == (layers is nullcontext)
        gradients.append(net.stage1.rebnconvin.conv_s1.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert (u2net.halve, u2net.resize, Conv3x3.forward) == ours


def test_plain_layers_resize_only_what_is_of_another_size() -> None:
    """As the authors' code, which joins features that have the size already as they are."""
    net, photos = U2Net("u2netp"), noise(1, 3, 64, 64)
    resized = []
    plain = torch.nn.functional.interpolate

    def noted(x: torch.Tensor, size: tuple[int, ...], **options: Any) -> torch.Tensor:
        resized.append((x.shape[-2:], size))
        return plain(x, size=size, **options)

    with pytest.MonkeyPatch.context() as patch, speed.plain_layers():
        patch.setattr(torch.nn.functional, "interpolate", noted)
        net(photos)
    assert resized
    assert all(tuple(old) != new for old, new in resized)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_theirs_turns_a_photo_by_its_tag_as_ours_does(orientation: int, tmp_path: Path) -> None:
    net, path = uneven(U2Net("u2netp"), seed=9), tmp_path / "a.jpg"
    photo(96, 64).save(path, exif=oriented(orientation))
    weights.save(net, tmp_path / "net.pth")
    ours = speed.our_prediction(tmp_path / "net.pth", 64)(path)
    theirs = speed.onnx_runtime(speed.write_onnx_file(net, 64, tmp_path), 64)(path)
    assert 0.2 < ours.mean() < 0.8
    assert iou(metrics.count(ours, theirs)) > 0.9


def test_one_photo_to_calibrate_with_is_told_of(tmp_path: Path) -> None:
    weights.save(U2Net("u2netp"), tmp_path / "net.pth")
    write_pairs(tmp_path / "Image", tmp_path / "Mask", 1)
    words = ["--weights", str(tmp_path / "net.pth"), "--int8", str(tmp_path / "Image")]
    with pytest.raises(CarsegError, match=r"^--int8: one photo is too few"):
        speed.bench([*words, "--batch", "1", "--rounds", "1"])


def test_integers_are_not_judged_on_photos_that_they_were_calibrated_on(tmp_path: Path) -> None:
    write_pairs(tmp_path / "Image", tmp_path / "Mask", 2)
    words = ["--weights", str(tmp_path / "net.pth"), "--images", str(tmp_path / "Image")]
    with pytest.raises(CarsegError, match=r"^--int8: \S+Image/0\.jpg is among --images, too"):
        speed.bench([*words, "--int8", str(tmp_path / "Image")])


def nodes(start: Any) -> set[Any]:
    """All of autograd's nodes behind one."""
    found, left = set(), [start]
    while left:
        if (node := left.pop()) is not None and node not in found:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    return found


@pytest.mark.slow
def test_masks_of_given_weights_are_compared_on_given_photos(tmp_path: Path) -> None:
    weights.save(uneven(U2Net("u2netp")), tmp_path / "net.pth")
    write_pairs(tmp_path / "Image", tmp_path / "Mask", 2)
    words = ["--model", "u2netp", "--image-size", "64", "--batch", "1", "--rounds", "1"]
    words += ["--weights", str(tmp_path / "net.pth"), "--images", str(tmp_path / "Image")]
    result = speed.bench([*words, "--out", str(tmp_path / "bench.json")])
    agreement = result["agreement"]
    assert isinstance(agreement, dict)
    assert list(agreement) == ["carseg"]
    assert 0 < agreement["carseg"]["least"] <= agreement["carseg"]["mean"] <= 1


@pytest.mark.slow
def test_agreement_is_that_of_masks_of_the_same_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = np.array([[True, False]]), np.array([[True, True]])
    ours = dict(zip((Path("a.jpg"), Path("b.jpg")), halves, strict=True))
    monkeypatch.setattr(speed, "our_prediction", lambda *_: ours.get)
    monkeypatch.setattr(speed, "onnx_runtime", lambda *_: lambda path: halves[1])
    found = speed.time_prediction(uneven(U2Net("u2netp")), 64, list(ours), None, 1, tmp_path)[1]
    assert found == {"carseg": {"mean": 0.75, "least": 0.5}}


@pytest.mark.slow
def test_integers_that_change_masks_cost_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise CarsegError("model.xml: its masks differ")

    monkeypatch.setattr(speed, "write_int8", refuse)
    photo = write_pairs(tmp_path / "Image", tmp_path / "Mask", 1)[0]
    words = uneven(U2Net("u2netp")), 64, [tmp_path / f"Image/{photo}.jpg"], Calibration([], [])
    seconds, _ = speed.time_prediction(*words, 1, tmp_path)
    assert list(seconds) == ["carseg", "ONNX Runtime"]
    assert "no 8-bit integers are timed: model.xml: its masks differ" in capsys.readouterr().err


@pytest.mark.slow
def test_what_the_pipeline_trained_is_timed_in_integers_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize, "AGREEMENT", 0.0)
    monkeypatch.chdir(tmp_path)
    write_manifests(tmp_path, train=2, val=1)
    Path("params.yaml").write_text("model: u2net\nimage_size: 64\n")  # changed since
    calibrated: list[Path] = []
    of = Calibration.of

    def noted(photos: Sequence[Path], size: int) -> Calibration:
        calibrated.extend(photos)
        return of(photos, size)

    monkeypatch.setattr(Calibration, "of", noted)
    weights.save(uneven(U2Net("u2netp")), Path("u2net_segmentation_dice_loss.pth"))
    result = speed.bench(["--trained", "--batch", "1", "--rounds", "1"])
    agreement, seconds = result["agreement"], result["seconds"]
    assert isinstance(agreement, dict)
    assert isinstance(seconds, dict)
    assert list(agreement) == ["carseg", "carseg, 8 bits"]
    assert set(seconds["prediction"]) == {*agreement, "ONNX Runtime"}
    assert calibrated == [pair.photo for pair in read_manifest(Path("split/train.csv"))]
    said = capsys.readouterr().out
    assert f"int8 speed up: {result['int8_speed_up']:.2f}" in said
    assert f"agreement, carseg, 8 bits: {agreement['carseg, 8 bits']['mean']:.4f}" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "photos"], "--images and --int8 want --weights"),
        (["--int8", "photos"], "--images and --int8 want --weights"),
        (["--trained", "--weights", "w.pth"], "--trained names the weights and the photos itself"),
        (["--rounds", "0"], "--batch and --rounds: 1 is the least"),
        (["--batch", "0"], "--batch and --rounds: 1 is the least"),
        (["--image-size", "16"], "--image-size 16: 32 to 4096 are possible"),
    ],
)
def test_options_that_do_not_go_together_are_told_of(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        speed.bench(words)
    assert said in capsys.readouterr().err


def test_figures_follow_from_the_timings() -> None:
    seconds = {
        "product": {"float32": [2.0, 3.0], "bfloat16": [1.0, 1.5]},
        "training": {"carseg": [2.0, 1.0, 1.0], "plain": [6.0, 4.0, 3.0]},
        "prediction": {"carseg": [1.0], "carseg, 8 bits": [0.25], "ONNX Runtime": [0.5]},
    }
    found = speed.summary(seconds, flops=speed.SIDE**3)
    assert found["training_speed_up"] == 3
    assert found["prediction_speed_up"] == 0.5
    assert found["int8_speed_up"] == 2
    assert found["training_share_of_peak"] == 0.5
    assert found["peak_gflops"] == {
        "float32": speed.SIDE**3 / 1e9,
        "bfloat16": 2 * speed.SIDE**3 / 1e9,
    }


@pytest.mark.parametrize(
    ("precision", "formats"), [("float32", ["float32"]), ("bfloat16", ["float32", "bfloat16"])]
)
def test_the_peak_is_that_of_formats_the_device_computes_in(
    precision: str, formats: list[str]
) -> None:
    """Elsewhere a product in bfloat16 takes minutes, and nothing would be compared with it."""
    assert list(speed.products(Device(precision, "cpu"))) == formats


@pytest.mark.parametrize(("capability", "name"), [("AVX2", "net.pth"), ("AVX512", "model.xml")])
def test_ours_is_the_engine_that_was_measured_as_the_fastest(
    capability: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert speed.write_ours(U2Net("u2netp"), 64, tmp_path / "ours").name == name


def test_operations_are_those_of_plain_convolutions() -> None:
    # As pnnx counts them for a look at one photo.
    look = 117.6e9
    assert speed.flops_of("u2net", 320, 4) == pytest.approx(3 * 4 * look, rel=0.02)


def test_turns_are_taken_and_the_first_does_not_count() -> None:
    order: list[str] = []
    timed = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    seconds = speed.alternate(timed, 3)
    assert order == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def divide_in_turn() -> Callable[[float], tuple[int, int, float]]:
    turns = count()
    return lambda number: (os.getpid(), next(turns), 1 / number)


def fail() -> Callable[[], None]:
    raise CarsegError("cannot be made")


def test_what_goes_wrong_there_is_told_here(apart: Callable[..., Any]) -> None:
    with pytest.raises(CarsegError, match=r"^cannot be made$"), apart(fail):
        pass


def test_theirs_has_a_process_of_its_own(apart: Callable[..., Any]) -> None:
    with apart(divide_in_turn) as call:
        theirs, *first = call(4)
        assert first == [0, 0.25]
        with pytest.raises(ZeroDivisionError):
            call(0)
        assert call(2) == (theirs, 2, 0.5), "made once, for all calls"
        assert theirs != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(theirs, 0)
