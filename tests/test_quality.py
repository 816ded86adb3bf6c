"""The benchmark against a ready-made background remover."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ellipse, write_pairs
from PIL import Image

from benchmarks.quality import Remover, compare
from carseg import weights
from carseg.errors import CarsegError
from carseg.metrics import count, iou
from carseg.scores import Scores


def square_photo() -> tuple[Image.Image, np.ndarray]:
    """A pale thing on dark ground, which a net for salient objects finds, and where it is."""
    thing = ellipse(200, 200, seed=1)
    pixels = np.full((200, 200, 3), 40, np.uint8)
    pixels[thing] = (230, 220, 190)
    return Image.fromarray(pixels), thing


def test_the_remover_finds_what_stands_out(official: Path) -> None:
    photo, thing = square_photo()
    assert iou(count(Remover(official / "u2netp.onnx")(photo, 1), thing)) > 0.9


def test_averaged_over_rotations_it_turns_with_the_photo(official: Path) -> None:
    photo, _ = square_photo()
    remover = Remover(official / "u2netp.onnx")
    straight = remover(photo, 4)
    turned = remover(photo.transpose(Image.Transpose.ROTATE_90), 4)
    assert iou(count(turned, np.rot90(straight))) > 0.98


def test_the_table_has_a_row_a_way(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"model": "u2netp", "precision": "float32", "image_size": 64}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    write_pairs(Path("Image"), Path("Mask"), 2)
    weights.save(weights.start("u2netp", official, seed=0), Path("net.pth"))
    arguments = Namespace(
        images=Path("Image"),
        masks=Path("Mask"),
        onnx=official / "u2netp.onnx",
        weights=Path("net.pth"),
    )
    compare(arguments)
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["2", "photos", *Scores._fields]
    assert len(rows) == 7
    for row in rows:
        numbers = [float(word) for word in row.split()[-4:]]
        assert all(0 <= number <= 1 for number in numbers[:3])
    with pytest.raises(CarsegError, match=r"other\.onnx: there is no such file"):
        compare(Namespace(**{**vars(arguments), "onnx": Path("other.onnx")}))
    Image.new("L", (60, 50)).save("Mask/1.png")
    with pytest.raises(CarsegError, match=r"^Mask/1\.png: is not as large as Image/1\.jpg; give"):
        compare(arguments)
