"""Exported networks in 8-bit integers find what the weights find, or are not kept."""

import copy
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from conftest import photo, run_carseg
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image
from torch import nn

from carseg import quantize, weights
from carseg.card import Card, card
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.export import export
from carseg.files import write_json
from carseg.formats import Probability, run_onnx, run_openvino, write_openvino
from carseg.metrics import count, iou
from carseg.model import load
from carseg.quantize import MOST, PREPARED, Calibration, agreement
from carseg.sample import render_sample
from carseg.tensors import MEAN, STD
from carseg.u2net import LIMIT, U2Net

SIZE = 64
WEIGHTS = Path("u2net_segmentation_dice_loss.pth")
METRICS = {"dice": {"plain": {"dice": 0.9, "iou": 0.8, "boundary_iou": 0.7, "hd95": 3.0}}}
EXACT = "stage2d.rebnconv2d", "stage2d.rebnconv1d"  # the one gives what the other takes away


class Made(NamedTuple):
    """A folder with weights, photos in `Image`, and networks in `int8`."""

    root: Path
    net: U2Net
    calibration: Calibration
    told: list[str]  # what was logged for people to read


def write_photos(folder: Path, number: int) -> list[Path]:
    """Write smooth noise."""
    folder.mkdir()
    for i in range(number):
        photo(seed=i).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


def half_car(looks: Sequence[NDArray[np.float32]]) -> U2Net:
    """A net with batch norms of these looks, that must be exact in two layers; car is half."""
    torch.manual_seed(0)
    net = U2Net("u2netp")
    norms = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    giving, exact = (net.get_submodule(f"{layer}.bn_s1") for layer in EXACT)
    seen = torch.from_numpy(np.concatenate(looks))
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # one batch gives the statistics
        net.train()(seen)
        giving.bias += 2 * LIMIT
        layer = net.get_submodule(EXACT[1]).conv_s1
        lost = layer.weight[:, : giving.bias.numel()].sum((1, 2, 3))
        exact.running_mean += 2 * LIMIT * lost
        logits = net.eval()(seen)[:, 0]
        net.outconv.weight *= 4 / logits.std()
        net.outconv.bias -= logits.median()
        net.outconv.bias *= 4 / logits.std()
    return net


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collect warnings that are logged, which would be printed where no test runs."""
    words: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: words.append(record.getMessage())  # type: ignore[method-assign]
    logging.root.addHandler(handler)
    try:
        yield words
    finally:
        logging.root.removeHandler(handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What `carseg export --int8 Image` makes of such a net."""
    root = tmp_path_factory.mktemp("project")
    calibration = Calibration.of(write_photos(root / "Image", 6), SIZE)
    net = half_car([*calibration.calibrating, *calibration.held_out])
    weights.save(net, root / WEIGHTS)
    (root / "params.yaml").write_text(f"image_size: {SIZE}\nmodel: u2netp\n")
    write_json(root / "metrics.json", METRICS)
    with pytest.MonkeyPatch.context() as patch, heard() as told:
        patch.chdir(root)
        patch.setattr(quantize, "AGREEMENT", 0.9)  # where all is near the edge of the car
        run_carseg("export", "--int8", "Image", "--out", "int8")
    return Made(root, net, calibration, told)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_masks_are_those_of_the_weights(name: str, made: Made) -> None:
    expected = load(made.root / WEIGHTS, SIZE, precision="float32")
    integers = load(made.root / "int8" / name)
    assert integers.size == SIZE
    for path in sorted((made.root / "Image").iterdir()):
        there, found = expected.look(path) >= 0.5, integers.look(path) >= 0.5
        assert 0.3 < there.mean() < 0.7, "all alike would prove nothing"
        assert iou(count(found, there)) > 0.9


def test_weights_have_seven_bits_and_a_scale_for_each_channel(made: Made) -> None:
    graph = onnx.load(str(made.root / "int8/model.onnx")).graph
    held = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    pairs = [
        (held[node.input[0]], held[node.input[1]])
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in held
    ]
    found = [(weight, scale) for weight, scale in pairs if weight.dtype == np.int8]
    assert len(found) > 50
    for weight, scale in found:
        assert abs(weight.astype(int)).max() <= 64
        assert scale.shape == weight.shape[:1]


def test_files_are_smaller_and_say_what_they_are(made: Made) -> None:
    whole = (made.root / WEIGHTS).stat().st_size
    # The rest of it is the graph, which is nothing beside the weights of the full net.
    assert (made.root / "int8/model.onnx").stat().st_size < whole / 2.5
    assert (made.root / "int8/model.bin").stat().st_size < whole / 3.5
    model = onnx.load(str(made.root / "int8/model.onnx"), load_external_data=False)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["precision"], told["image_size"]) == ("int8", str(SIZE))
    assert json.loads(told["float32_metrics"]) == METRICS["dice"]
    assert not {"metrics", PREPARED, "onnx.infer"}.intersection(told)
    model = openvino.Core().read_model(made.root / "int8/model.xml")
    assert model.get_rt_info(["carseg", "precision"]).astype(str) == "int8"
    text = (made.root / "int8/MODEL_CARD.md").read_text()
    assert re.search(r"in 8-bit integers.* at IoU (0\.9\d\d|1\.000),", text), text
    assert "8-bit" not in card(Card.of(made.root / WEIGHTS, "u2netp", SIZE), ["model.onnx"], None)


def test_nothing_is_logged(made: Made) -> None:
    assert made.told == []


def test_what_8_bits_are_too_few_for_stays_in_float32(made: Made) -> None:
    graph = onnx.load(str(made.root / "int8/model.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    whole = [n for n in graph.node if n.op_type == "Conv" and n.input[1] not in makers]
    sides = {f"side{i}" for i in range(1, 7)}
    names = {node.input[1].removeprefix("net.").removesuffix(".weight") for node in whole}
    assert names == {f"{name}.conv_s1" for name in EXACT} | sides | {"outconv"}
    for node in whole:  # what they read was not rounded, either
        assert makers[node.input[0]].op_type in ("Add", "Concat")
    (reader,) = (node for node in whole if EXACT[1] in node.input[1])
    below, _ = makers[reader.input[0]].input  # the rest is the skip
    while makers[below].op_type == "Resize":
        below = makers[below].input[0]
    giver = makers[makers[below].input[0]]
    assert makers[below].op_type == "Relu"
    assert EXACT[0] in giver.input[1]


def test_a_first_layer_that_must_be_exact_stays_in_float32(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing makes the photo that it reads."""
    graph = onnx.load(str(made.root / "int8/model.onnx")).graph
    first = graph.node.add(op_type="Conv", name="first")
    first.input.extend(["photo", "net.stage1.rebnconvin.conv_s1.weight"])
    monkeypatch.setattr(quantize, "exact_layers", lambda _: ["stage1.rebnconvin"])
    assert "first" in quantize._in_float32(graph, made.net)


def test_openvino_keeps_float32_where_bfloat16_would_do(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor with fast bfloat16, as far as carseg knows."""
    asked: list[object] = []
    monkeypatch.setattr(Device, "_has_fast_bfloat16", lambda _: True)
    core = MagicMock(wraps=openvino.Core())
    core.compile_model.side_effect = lambda model, device, hint: asked.append(hint)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    load(made.root / "int8/model.xml")
    assert asked == [{"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}]


@pytest.mark.parametrize(
    ("precision", "fast", "hint"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "f32"),
        ("float32", True, "f32"),
        ("bfloat16", False, "bf16"),
    ],
)
def test_openvino_computes_files_in_float32_as_asked(
    precision: str,
    fast: bool,
    hint: str,
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_openvino(Probability(made.net), tmp_path, SIZE, None, {"image_size": str(SIZE)})
    asked: list[object] = []
    monkeypatch.setattr(Device, "_has_fast_bfloat16", lambda _: fast)
    core = MagicMock(wraps=openvino.Core())
    core.compile_model.side_effect = lambda model, device, hint: asked.append(hint)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    load(tmp_path / "model.xml", precision=precision)
    assert asked == [{"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1}]


def test_masks_that_disagree_are_told_of(made: Made) -> None:
    net = Probability(copy.deepcopy(made.net)).eval()

    def found(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return net(torch.from_numpy(photos)).numpy()  # type: ignore[no-any-return]

    assert agreement(net, found, made.calibration, "it") == 1
    line = r"^it: in 8-bit integers its masks agree with torch's at IoU 0\.\d+, less than 0\.98; "
    for run in (lambda photos: 1 - found(photos), lambda photos: found(photos) * np.float32("nan")):
        with pytest.raises(CarsegError, match=line):
            agreement(net, run, made.calibration, "it")
    with pytest.raises(CarsegError, match=r"^--int8: no car was found in these photos; "):
        agreement(net, found, made.calibration._replace(threshold=1.1), "it")


def test_masks_are_compared_in_batches_that_the_file_takes(made: Made) -> None:
    net = Probability(copy.deepcopy(made.net)).eval()
    given: list[NDArray[np.float32]] = []

    def last_is_wrong(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        given.append(photos)
        with torch.inference_mode():
            found: NDArray[np.float32] = net(torch.from_numpy(photos)).numpy()
        if len(given) == 2:
            found[1:] = 1 - found[1:]  # what only fills the batch up
        return found

    assert len(made.calibration.held_out) == 3
    assert agreement(net, last_is_wrong, made.calibration, "it", batch=2) == 1
    assert [len(photos) for photos in given] == [2, 2]
    assert np.array_equal(np.concatenate(given)[:3], np.concatenate(made.calibration.held_out))


def test_nothing_is_left_of_what_disagrees(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> float:
        raise CarsegError("they disagree")

    monkeypatch.setattr(quantize, "write_onnx", lambda net, folder, *_: (folder / "x").touch())
    monkeypatch.setattr(quantize, "quantize", lambda *_: None)
    monkeypatch.setattr(quantize, "run_onnx", lambda _: None)
    monkeypatch.setattr(quantize, "agreement", refuse)
    photos = sorted((made.root / "Image").iterdir())
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(CarsegError, match="they disagree"):
        export(made.root / WEIGHTS, tmp_path, ["onnx"], SIZE, None, True, photos)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_masks_are_compared_at_the_threshold_of_the_settings(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def write(net: Probability, folder: Path, *rest: object) -> float:
        given.extend(each.threshold for each in rest if isinstance(each, Calibration))
        (folder / "model.onnx").touch()
        return 1.0

    monkeypatch.setattr("carseg.export.write_int8", write)
    (tmp_path / "net.pth").write_bytes((made.root / WEIGHTS).read_bytes())
    (tmp_path / "params.yaml").write_text("threshold: 0.4\n")
    photos = sorted((made.root / "Image").iterdir())
    export(tmp_path / "net.pth", tmp_path / "out", ["onnx"], SIZE, None, False, photos)
    assert given == [0.4]


@pytest.mark.slow
def test_masks_of_the_official_weights_stay_the_same_for_several_photos_at_once(
    official: Path, tmp_path: Path
) -> None:
    (tmp_path / "Image").mkdir()
    (tmp_path / "Mask").mkdir()
    render_sample(tmp_path / "Image", tmp_path / "Mask", count=4, long_side=480)
    photos = sorted((tmp_path / "Image").iterdir())
    weights.save(weights.start("u2netp", official, 0), tmp_path / "net.pth")
    out = tmp_path / "out"
    written = export(tmp_path / "net.pth", out, ["openvino"], 192, 2, False, photos)
    assert sorted(out.iterdir()) == sorted(written), "the ONNX file was not asked for"
    run = run_openvino(out / "model.xml")
    look = np.concatenate(Calibration.of(photos, 192).held_out)  # (2, 3, 192, 192)
    with torch.inference_mode():
        net = Probability(weights.start("u2netp", official, 0)).eval()
        expected = net(torch.from_numpy(look)).numpy() >= 0.5
    for mask, there in zip(run(look) >= 0.5, expected, strict=True):
        assert 0.02 < there.mean() < 0.9, "there is a car, or agreement would prove nothing"
        assert iou(count(mask, there)) > 0.97
    with pytest.raises(CarsegError, match="takes 2 photos at once"):
        load(out / "model.xml")


def test_training_does_not_start_from_integers(made: Made, tmp_path: Path) -> None:
    shutil.copy(made.root / "int8/model.onnx", tmp_path)
    with pytest.raises(CarsegError, match=r"model\.onnx: is in 8-bit integers; take the weights"):
        weights.start("u2netp", tmp_path, 0)


def test_only_files_that_are_kept_are_compared(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def note(*given: Any) -> float:
        compared.append(given[3])
        return 0.99

    monkeypatch.setattr(quantize, "agreement", note)
    # The network itself is there, and takes long to make.
    made_before = made.root / "int8/model.onnx"
    monkeypatch.setattr(
        quantize,
        "write_onnx",
        lambda net, folder, *_: shutil.copy(made_before, folder / made_before.name),
    )
    calibrated: list[NDArray[np.float32]] = []
    monkeypatch.setattr(quantize, "quantize", lambda _, __, looks: calibrated.extend(looks))
    photos = sorted((made.root / "Image").iterdir())
    for format, name in (("openvino", "model.xml"), ("onnx", "model.onnx")):
        export(made.root / WEIGHTS, tmp_path / format, [format], SIZE, 2, False, photos)
        assert compared == [name]
        compared.clear()
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx/model.onnx"))
    assert session.get_inputs()[0].shape == [2, 3, SIZE, SIZE]
    wanted = Calibration.of(photos, SIZE).calibrating
    for found, other in zip(calibrated, [*wanted, *wanted], strict=True):
        assert np.array_equal(found, other), "not on what is held out"


def test_an_onnx_file_takes_as_many_photos_as_it_is_to(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes((made.root / "int8/model.onnx").read_bytes())
    quantize._fix_batch(path, 2)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [2, 3, SIZE, SIZE]
    assert session.get_outputs()[0].shape == [2, 1, SIZE, SIZE]
    look = np.concatenate(made.calibration.calibrating[:2])
    (found,) = session.run(None, {"photo": look})
    one = run_onnx(made.root / "int8/model.onnx")(look[1:])
    # A last digit of float32 may be a whole step of 8 bits.
    assert iou(count(found[1:] >= 0.5, one >= 0.5)) > 0.95


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--int8 one", "--int8: one photo is too few; name ten, or two at least"),
        ("--int8 none", "none: holds no photo; name another folder"),
        ("--int8 nowhere", "nowhere: there is no such file; check the path"),
        ("--int8 broken", r"broken/1\.jpg: .* it is empty; save it anew or leave it out"),
        ("--int8 raw", r"raw/1\.nef: is a camera's raw file, of which .* or leave it out"),
        ("--int8=", "--int8: names nothing; give a folder"),
        (
            "--int8 Image --format safetensors",
            "--int8: safetensors hold float32 weights alone; add --format onnx or openvino",
        ),
    ],
)
def test_what_cannot_be_quantized_is_a_line(
    words: str, line: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "one", 1)
    (tmp_path / "none").mkdir()
    write_photos(tmp_path / "broken", 1)
    (tmp_path / "broken/1.jpg").touch()
    write_photos(tmp_path / "raw", 1)
    (tmp_path / "raw/1.nef").write_bytes((tmp_path / "raw/00.png").read_bytes())
    write_photos(tmp_path / "Image", 2)
    monkeypatch.chdir(tmp_path)
    more = ["--weights", str(made.root / WEIGHTS), "--image-size", str(SIZE)]
    with pytest.raises(SystemExit, match=f"^carseg: {line}$"):
        run_carseg("export", *words.split(), *more)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("number", "calibrating", "held_out"),
    [(2, [0], [1]), (5, [0, 2, 4], [1, 3]), (48, range(0, 48, 3), range(1, 48, 3))],
)
def test_photos_from_all_over_are_taken_and_every_other_one_is_held_out(
    number: int,
    calibrating: Sequence[int],
    held_out: Sequence[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(_: bytes, path: Path) -> Image.Image:
        return Image.new("RGB", (9, 9), (255, int(path.stem), 0))

    monkeypatch.setattr(quantize, "read", read)
    photos = [tmp_path / f"{i:02}.png" for i in range(number)]
    for path in photos:
        path.touch()
    found = Calibration.of(photos, 32)
    assert len(found.calibrating) + len(found.held_out) == min(number, MOST)
    for looks, expected in ((found.calibrating, calibrating), (found.held_out, held_out)):
        greens = [look[0, 1] * STD[1].item() + MEAN[1].item() for look in looks]
        assert [round(float(green.mean() * 255)) for green in greens] == [*expected]
