"""Exported networks in 8-bit integers find what the weights find, or are not kept."""

import copy
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import MagicMock

import numpy as np
import onnx
import openvino
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from carseg import __main__, quantize, weights
from carseg.card import Card, card
from carseg.device import Device
from carseg.errors import CarsegError
from carseg.formats import Probability
from carseg.metrics import count, iou
from carseg.model import load
from carseg.quantize import MOST, Samples, agreement
from carseg.u2net import LIMIT, U2Net

SIZE = 64
WEIGHTS = Path("u2net_segmentation_dice_loss.pth")
EXACT = "stage2d.rebnconv2d", "stage2d.rebnconv1d"  # the one gives what the other takes away


class Made(NamedTuple):
    """A folder with weights, photos in `Image`, and networks in `int8`."""

    root: Path
    net: U2Net
    samples: Samples
    told: list[str]  # what was logged for people to read


def write_photos(folder: Path, number: int) -> list[Path]:
    """Write smooth noise."""
    folder.mkdir()
    for i in range(number):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 9, 3), dtype=np.uint8)
        photo = Image.fromarray(coarse).resize((90, 60), Image.Resampling.BICUBIC)
        photo.save(folder / f"{i:02}.png")
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
        lost = net.get_submodule(EXACT[1]).conv_s1.weight[:, : len(giving.bias)].sum((1, 2, 3))
        exact.running_mean += 2 * LIMIT * lost
        logits = net.eval()(seen)[:, 0]
        net.outconv.weight *= 4 / logits.std()
        net.outconv.bias -= logits.median()
        net.outconv.bias *= 4 / logits.std()
    return net


@contextmanager
def heard(words: list[str]) -> Iterator[None]:
    """Collect warnings that are logged, which would be printed where no test runs."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: words.append(record.getMessage())  # type: ignore[method-assign]
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """What `carseg export --int8 Image` makes of such a net."""
    root = tmp_path_factory.mktemp("project")
    samples = Samples.of(write_photos(root / "Image", 6), SIZE, None)
    net = half_car([*samples.ranges, *samples.checked])
    weights.save(net, root / WEIGHTS)
    (root / "params.yaml").write_text(f"image_size: {SIZE}\nmodel: u2netp\n")
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch, heard(told):
        patch.chdir(root)
        patch.setattr(quantize, "AGREEMENT", 0.9)  # where all is near the edge of the car
        patch.setattr(sys, "argv", ["carseg", "export", "--int8", "Image", "--out", "int8"])
        __main__.main()
    return Made(root, net, samples, told)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_masks_are_those_of_the_weights(name: str, made: Made) -> None:
    expected = load(made.root / WEIGHTS, SIZE, precision="float32")
    integers = load(made.root / "int8" / name)
    assert integers.size == SIZE
    for path in sorted((made.root / "Image").iterdir()):
        there, found = expected.predict(path) >= 0.5, integers.predict(path) >= 0.5
        assert 0.3 < there.mean() < 0.7, "all alike would prove nothing"
        assert iou(count(found, there)) > 0.9


def test_files_are_smaller_and_say_what_they_are(made: Made) -> None:
    whole = (made.root / WEIGHTS).stat().st_size
    assert (made.root / "int8/model.onnx").stat().st_size < whole / 2.5
    assert (made.root / "int8/model.bin").stat().st_size < whole / 3
    model = onnx.load(str(made.root / "int8/model.onnx"), load_external_data=False)
    onnx.checker.check_model(model)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["precision"], told["image_size"]) == ("int8", str(SIZE))
    model = openvino.Core().read_model(made.root / "int8/model.xml")
    assert model.get_rt_info(["carseg", "precision"]).astype(str) == "int8"
    text = (made.root / "int8/MODEL_CARD.md").read_text()
    agreed = re.search(r"8-bit integers.* at IoU 0\.9\d\d,", text)
    assert agreed, text
    assert "8-bit" not in card(Card.of(made.root / WEIGHTS, "u2netp", SIZE), ["model.onnx"], None)


def test_nothing_is_logged(made: Made) -> None:
    assert made.told == []


def test_sides_and_exact_layers_stay_in_float32(made: Made) -> None:
    graph = onnx.load(str(made.root / "int8/model.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    whole = {
        node.input[1].removeprefix("net.").removesuffix(".weight")
        for node in graph.node
        if node.op_type == "Conv" and makers.get(node.input[1]) is None
    }
    sides = {f"side{i}" for i in range(1, 7)}
    assert whole == {f"{name}.conv_s1" for name in EXACT} | sides | {"outconv"}
    for node in graph.node:  # what they read was not rounded, either
        if node.op_type == "Conv" and node.input[1].startswith("net.side"):
            assert makers[node.input[0]].op_type == "Add"


def test_openvino_keeps_float32_where_bfloat16_would_do(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor with bfloat16, as far as carseg knows."""
    asked: list[object] = []
    monkeypatch.setattr(Device, "_has_bfloat16", lambda _: True)
    core = MagicMock(wraps=openvino.Core())
    core.compile_model.side_effect = lambda model, device, hint: asked.append(hint)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    load(made.root / "int8/model.xml")
    assert asked == [{"INFERENCE_PRECISION_HINT": "f32"}]


def test_masks_that_disagree_are_not_kept(made: Made) -> None:
    net = Probability(copy.deepcopy(made.net)).eval()

    def inside_out(photos: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return 1 - net(torch.from_numpy(photos)).numpy()

    line = r"^it: in 8-bit integers its masks agree with torch's at IoU 0\.\d+, less than 0\.98; "
    with pytest.raises(CarsegError, match=line):
        agreement(net, inside_out, made.samples.checked, "it")
    same = agreement(net, lambda photos: 1 - inside_out(photos), made.samples.checked, "it")
    assert same == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--int8 one", "--int8: one photo is too few; name ten, or two at least"),
        ("--int8 none", "none: holds no photo; name another folder, or add --recursive"),
        ("--int8 nowhere", "nowhere: there is no such file; check the path"),
        ("--int8 broken", r"broken/1\.jpg: cannot be read as an image, it is empty; save it anew"),
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
    write_photos(tmp_path / "Image", 2)
    monkeypatch.chdir(tmp_path)
    more = ["--weights", str(made.root / WEIGHTS), "--image-size", str(SIZE)]
    monkeypatch.setattr(sys, "argv", ["carseg", "export", *words.split(), *more])
    with pytest.raises(SystemExit, match=f"^carseg: {line}$"):
        __main__.main()
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("number", "ranges", "checked"), [(2, 1, 1), (5, 3, 2), (MOST, MOST // 2, MOST // 2)]
)
def test_photos_set_ranges_and_check_masks_in_turn(
    number: int, ranges: int, checked: int, tmp_path: Path
) -> None:
    samples = Samples.of(write_photos(tmp_path / "photos", number), 32, None)
    assert (len(samples.ranges), len(samples.checked)) == (ranges, checked)
    assert not any(np.array_equal(a, b) for a in samples.ranges for b in samples.checked)


def test_of_many_photos_some_all_over_are_taken_as_often_as_a_look_has(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3) * MOST
    samples = Samples.of(photos, 32, 2)
    assert len(samples.ranges) + len(samples.checked) == MOST
    assert samples.ranges[0].shape == (2, 3, 32, 32)
