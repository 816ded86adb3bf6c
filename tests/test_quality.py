"""The benchmark against a ready-made background remover."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ellipse, write_pairs
from PIL import Image

from benchmarks import quality
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


class Telling:
    """A model, and a remover, whose masks are as wide as they were asked for."""

    threshold, cleanup = 0.4, True

    def __call__(self, photo: Image.Image, turns: int) -> np.ndarray:
        return self.wide(turns) > 0

    def look(self, photo: Image.Image) -> np.ndarray:
        return self.wide(5)

    def predict(self, photo: Image.Image, *, d4: bool, closer: bool) -> np.ndarray:
        return self.wide(10 + 20 * d4 + 40 * closer)

    def wide(self, columns: int) -> np.ndarray:
        found = np.zeros((10, 100), np.float32)
        found[:, :columns] = 0.4
        found[:, 99] = 0.4 * (columns > 4)  # of which clean-up leaves nothing
        return found


def test_each_row_is_of_the_looks_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, ending, mode in (("Image", "jpg", "RGB"), ("Mask", "png", "L")):
        Path(folder).mkdir()
        Image.new(mode, (100, 10), "white").save(f"{folder}/0.{ending}")
    monkeypatch.setattr(quality, "Remover", lambda _: Telling())
    monkeypatch.setattr(quality, "load", lambda *_, **__: Telling())
    Path("it").touch()
    compare(Namespace(images=Path("Image"), masks=Path("Mask"), onnx=Path("it"), weights=Path("w")))
    rows = capsys.readouterr().out.splitlines()[1:]
    found = {row[:30].strip(): float(row[30:].split()[Scores._fields.index("iou")]) for row in rows}
    assert found == {
        "it untrained, as rembg": 0.01,
        "averaged over 4 rotations": 0.04,
        "trained here, one look": 0.05,
        "upright": 0.1,
        "looking closer": 0.5,
        "averaged over D4": 0.3,
        "averaged over D4, closer": 0.7,
    }


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
