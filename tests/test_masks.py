"""`carseg masks import`: everything right is written, anything wrong stops it whole."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carseg import __main__
from carseg.dataset import snapshot
from carseg.errors import CarsegError
from carseg.masks import import_masks

IMAGE, MASK = Path("Image"), Path("Mask")
SQUARE = [[8, 10], [29, 10], [29, 19], [8, 19]]
OTHER = [[40, 2], [59, 2], [59, 5], [40, 5]]


def labelme(name: str, *shapes: tuple[str, list[list[int]]], width: int = 64) -> Path:
    path = Path(f"{Path(name).stem}.json")
    path.write_text(json.dumps({
        "imagePath": name, "imageWidth": width, "imageHeight": 40,
        "shapes": [{"label": label, "points": points} for label, points in shapes],
    }))  # fmt: skip
    return path


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    IMAGE.mkdir()
    for i, name in enumerate(("a", "b")):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 64, 3), np.uint8)
        Image.fromarray(pixels).save(IMAGE / f"{name}.jpg")


def refused(*files: Path, classes: tuple[str, ...] = (), force: bool = False) -> list[str]:
    before = {path: path.read_bytes() for path in MASK.glob("*")}
    with pytest.raises(CarsegError) as caught:
        import_masks(files, classes, IMAGE, MASK, force)
    assert {path: path.read_bytes() for path in MASK.glob("*")} == before
    return str(caught.value).splitlines()


def test_masks_are_written_as_the_pipeline_takes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labelme("photos/a.jpg", ("car", SQUARE), ("dog", OTHER))
    labelme("b.jpg", ("car", SQUARE), ("van", OTHER))
    words = ["carseg", "masks", "import", "a.json", "b.json", "--class", "car", "--class", "van"]
    monkeypatch.setattr(sys, "argv", words)
    __main__.main()
    assert capsys.readouterr().out == "2 masks written to Mask\n"
    expected = np.zeros((40, 64), np.uint8)
    expected[10:20, 8:30] = 255
    assert np.array_equal(np.asarray(Image.open(MASK / "a.png")), expected)
    expected[2:6, 40:60] = 255
    assert np.array_equal(np.asarray(Image.open(MASK / "b.png")), expected)
    assert len(snapshot(Path(), Path("dataset"))) == 2


def test_the_only_class_need_not_be_named() -> None:
    assert import_masks([labelme("a.jpg", ("Auto", SQUARE))], (), IMAGE, MASK, False) == [
        MASK / "a.png"
    ]


def test_a_picture_without_a_car_gets_no_mask() -> None:
    files = [labelme("a.jpg", ("car", SQUARE)), labelme("b.jpg", ("dog", SQUARE))]
    assert import_masks(files, ("car",), IMAGE, MASK, False) == [MASK / "a.png"]
    assert not (MASK / "b.png").exists()


def test_several_classes_want_a_choice() -> None:
    file = labelme("a.jpg", ("car", SQUARE), ("dog", OTHER))
    assert refused(file) == ["there are several classes, car, dog; choose with --class"]
    assert refused(file, classes=("cat",)) == [
        "--class cat: there is no such class; there are car, dog"
    ]


def test_masks_are_replaced_only_when_forced() -> None:
    MASK.mkdir()
    (MASK / "a.png").write_text("mine")
    file = labelme("a.jpg", ("car", SQUARE))
    assert refused(file) == ["Mask/a.png: exists already; add --force to replace it"]
    import_masks([file], (), IMAGE, MASK, True)
    assert np.asarray(Image.open(MASK / "a.png")).max() == 255


def test_all_faults_are_told_at_once_and_nothing_is_written() -> None:
    Path("c.json").write_text("{")
    files = [
        labelme("a.jpg", ("car", SQUARE), width=65),
        labelme("b.jpg", ("car", SQUARE)),
        labelme("gone.jpg", ("car", SQUARE)),
        Path("c.json"),
    ]
    lines = refused(*files)
    assert len(lines) == 3
    assert lines[0].startswith("c.json: is broken")
    assert lines[1:] == [
        "Image/a.jpg: is 64x40 but was annotated as 65x40; annotate the photo as it is seen",
        "gone.jpg: is not in Image; put the photo there, or name its folder",
    ]


def test_a_photo_that_cannot_be_read_is_named() -> None:
    (IMAGE / "a.jpg").write_bytes(b"")
    (line,) = refused(labelme("a.jpg", ("car", SQUARE)))
    assert line.startswith("Image/a.jpg: cannot be read")


def test_a_picture_annotated_twice_is_named() -> None:
    one, other = labelme("a.jpg", ("car", SQUARE)), labelme("x/a.jpg", ("car", OTHER))
    other.rename("twice.json")
    labelme("a.jpg", ("car", SQUARE))
    assert refused(one, Path("twice.json")) == ["x/a.jpg: is annotated twice; leave one out"]


def test_no_region_at_all_is_told() -> None:
    assert refused(labelme("a.jpg")) == ["no picture has a region; annotate the cars first"]
