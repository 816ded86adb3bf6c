"""`carseg masks import`: everything right is written, anything wrong stops it whole."""

import json
import unicodedata
import weakref
from pathlib import Path

import numpy as np
import pytest
from conftest import oriented, run_carseg
from PIL import Image

from carseg import annotations, masks
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


def test_masks_are_written_as_the_pipeline_takes_them(capsys: pytest.CaptureFixture[str]) -> None:
    labelme("photos/a.jpg", ("car", SQUARE), ("dog", OTHER))
    labelme("b.jpg", ("car", SQUARE), ("van", OTHER))
    run_carseg("masks", "import", "a.json", "b.json", "--class", "car", "--class", "van")
    assert capsys.readouterr().out == "2 masks written to Mask\n"
    expected = np.zeros((40, 64), np.uint8)
    expected[10:20, 8:30] = 255
    assert np.array_equal(np.asarray(Image.open(MASK / "a.png")), expected)
    expected[2:6, 40:60] = 255
    assert np.array_equal(np.asarray(Image.open(MASK / "b.png")), expected)
    assert len(snapshot(Path(), Path("dataset"))) == 2


def test_options_reach_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("carseg.masks.import_masks", lambda *words: given.extend(words) or [])
    Path("a.json").touch()
    options = ["--class", "car", "--images", "photos", "--out", "masks", "--force"]
    run_carseg("masks", "import", "a.json", *options)
    assert given == [[Path("a.json")], ["car"], Path("photos"), Path("masks"), True]


def test_several_regions_are_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        labelme("a.jpg", ("car", SQUARE), ("car", OTHER)),
        labelme("b.jpg", ("car", SQUARE), ("dog", OTHER)),
    ]
    import_masks(files, ["car"], IMAGE, MASK, force=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "carseg: warning: Mask/a.png: is white where any of 2 regions is; cars further back want "
        "another class, or none"
    )


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


def test_an_import_that_was_cut_off_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [labelme("a.jpg", ("car", SQUARE)), labelme("b.jpg", ("car", OTHER))]
    write = masks.write_bytes

    def cut_off(path: Path, content: bytes) -> None:
        if path.exists() or path.name == "b.png":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(masks, "write_bytes", cut_off)
        with pytest.raises(KeyboardInterrupt):
            import_masks(files, (), IMAGE, MASK, False)
    assert [path.name for path in MASK.iterdir()] == ["a.png"]
    assert import_masks(files, (), IMAGE, MASK, False) == [MASK / "b.png"]
    assert sorted(path.name for path in MASK.iterdir()) == ["a.png", "b.png"]
    Image.new("L", (64, 40)).save(MASK / "b.png")  # drawn by hand since
    assert refused(*files) == ["Mask/b.png: exists already; add --force to replace it"]


def test_a_folder_in_the_place_of_a_mask_is_told_of() -> None:
    (MASK / "a.png").mkdir(parents=True)
    file = labelme("a.jpg", ("car", SQUARE))
    with pytest.raises(CarsegError, match=r"^Mask/a\.png: is a folder where a file is to be; move"):
        import_masks([file], (), IMAGE, MASK, True)


@pytest.mark.parametrize("name", ["é.png", "e\u0301.png", "é.PNG", "e\u0301.Png"])
def test_a_mask_is_found_however_its_name_is_written(name: str) -> None:
    (IMAGE / "a.jpg").rename(IMAGE / "é.jpg")
    MASK.mkdir()
    (MASK / name).write_text("mine")
    file = labelme("é.jpg", ("car", SQUARE))
    assert refused(file) == [f"Mask/{name}: exists already; add --force to replace it"]
    assert import_masks([file], (), IMAGE, MASK, True) == [MASK / name]
    assert [path.name for path in MASK.iterdir()] == [name]
    assert np.asarray(Image.open(MASK / name)).max() == 255


def test_of_two_masks_of_one_name_none_is_replaced() -> None:
    MASK.mkdir()
    for name in ("a.PNG", "a.png"):
        (MASK / name).write_text("mine")
    if len(list(MASK.iterdir())) == 1:
        pytest.skip("the file system does not tell cases apart")
    assert refused(labelme("a.jpg", ("car", SQUARE)), force=True) == [
        "Mask/a.png: shares its name with Mask/a.PNG; remove one"
    ]


def test_a_mask_in_other_case_is_one_that_exists_where_disks_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    MASK.mkdir()
    Image.new("L", (64, 40)).save(MASK / "A.png")
    file = labelme("a.jpg", ("car", SQUARE))
    # As on disks of macOS and Windows.
    monkeypatch.setattr("os.path.lexists", lambda path: path.with_stem(path.stem.upper()).exists())
    assert refused(file) == ["Mask/a.png: exists already; add --force to replace it"]


def test_a_picture_that_is_refused_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(_: object) -> np.ndarray:
        raise AssertionError("drawn")

    monkeypatch.setattr(masks, "_union", draw)
    assert len(refused(labelme("a.jpg", ("car", SQUARE), width=10**9))) == 1
    assert len(refused(labelme("gone.jpg", ("car", SQUARE)))) == 1


def test_no_mask_is_all_black() -> None:
    files = [
        labelme("a.jpg", ("car", [[70, 50], [90, 50], [90, 60]])),
        labelme("b.jpg", ("car", SQUARE)),
    ]
    assert refused(*files) == [
        "a.json: a.jpg: a region of 'car' has no inside, or is outside of the picture; draw it "
        "anew or remove it"
    ]


def test_a_folder_of_annotation_files_is_no_file() -> None:
    Path("labels").mkdir()
    with pytest.raises(SystemExit) as caught:
        run_carseg("masks", "import", "labels")
    assert caught.value.code == (
        "carseg: labels: is a folder; give the files in it, as labels/*.json"
    )


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".Jpeg"])
def test_a_photo_may_end_in_any_way_that_pairs_do(ending: str) -> None:
    (IMAGE / "a.jpg").rename(IMAGE / f"a{ending}")
    assert import_masks([labelme(f"a{ending}", ("car", SQUARE))], (), IMAGE, MASK, False) == [
        MASK / "a.png"
    ]


def test_a_photo_of_another_height_is_named() -> None:
    Image.new("RGB", (64, 41)).save(IMAGE / "a.jpg")
    assert refused(labelme("a.jpg", ("car", SQUARE))) == [
        "Image/a.jpg: is 64x41 but was annotated as 64x40; put the photo that was annotated there, "
        "or annotate this one, in a tool that heeds its EXIF tag"
    ]


def test_a_photo_is_annotated_as_it_is_seen() -> None:
    """Turned by its tag, as programs that annotate show it."""
    Image.new("RGB", (40, 64)).save(IMAGE / "a.jpg", exif=oriented(6))
    assert import_masks([labelme("a.jpg", ("car", SQUARE))], (), IMAGE, MASK, False) == [
        MASK / "a.png"
    ]
    Image.new("RGB", (64, 40)).save(IMAGE / "a.jpg", exif=oriented(6))
    (line,) = refused(labelme("a.jpg", ("car", SQUARE)), force=True)
    assert line.startswith("Image/a.jpg: is 40x64 but was annotated as 64x40")


def test_a_size_that_is_text_is_named_as_such() -> None:
    file = labelme("a.jpg", ("car", SQUARE))
    file.write_text(file.read_text().replace('"imageWidth": 64', '"imageWidth": "64"'))
    assert refused(file) == ["a.jpg: a picture or mask of '64'x40 pixels; export it anew"]


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
        "Image/a.jpg: is 64x40 but was annotated as 65x40; put the photo that was annotated there, "
        "or annotate this one, in a tool that heeds its EXIF tag",
        "gone.jpg: is not in Image; put the photo there, or name its folder",
    ]


def test_a_photo_that_cannot_be_read_is_named() -> None:
    (IMAGE / "a.jpg").write_bytes(b"")
    (line,) = refused(labelme("a.jpg", ("car", SQUARE)))
    assert line.startswith("Image/a.jpg: cannot be read")


def test_a_file_that_may_not_be_read_is_told_of_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    files = [labelme("a.jpg", ("car", SQUARE)), labelme("b.jpg", ("car", SQUARE))]
    monkeypatch.setattr(Path, "read_text", refuse)
    lines = refused(*files)
    assert lines[:2] == [
        f"{file}: cannot be read (Permission denied); check its permissions" for file in files
    ]


def test_a_picture_annotated_twice_is_named() -> None:
    one, other = labelme("a.jpg", ("car", SQUARE)), labelme("x/a.jpg", ("car", OTHER))
    other.rename("twice.json")
    labelme("a.jpg", ("car", SQUARE))
    assert refused(one, Path("twice.json")) == [
        f"twice.json: annotates x/a.jpg as {one} does; remove one of the two"
    ]


def test_a_picture_that_a_file_annotates_twice_is_named() -> None:
    image = '<image name="a.jpg" width="64" height="40">' + (
        '<polygon label="car" points="4,4;20,4;20,20"/></image>'
    )
    Path("twice.xml").write_text(f"<annotations>{2 * image}</annotations>")
    assert refused(Path("twice.xml")) == ["twice.xml: annotates a.jpg twice; remove one of the two"]


def test_a_file_that_is_given_twice_is_read_once() -> None:
    file = labelme("a.jpg", ("car", SQUARE))
    assert import_masks([file, file], (), IMAGE, MASK, False) == [MASK / "a.png"]


def test_pictures_in_different_folders_that_share_a_name_are_told_apart() -> None:
    """Also where only one of them shows a car: its mask could be the other's."""
    told = "cam1/a.jpg, cam2/a.jpg: would share a mask, a.png; rename one, and export anew"
    for shapes in ([], [("car", OTHER)]):
        one = labelme("cam1/a.jpg", *shapes).rename("one.json")
        other = labelme("cam2\\a.jpg", ("car", SQUARE))
        assert refused(one, other) == [told]
    assert refused(one, other, classes=("car",)) == [told]


def test_pictures_of_one_name_without_a_car_need_not_be_told_apart() -> None:
    files = [labelme(f"cam{i}/z.jpg").rename(f"{i}.json") for i in range(2)]
    files.append(labelme("cam1/a.jpg", ("car", SQUARE)))
    assert import_masks(files, (), IMAGE, MASK, False) == [MASK / "a.png"]


def test_no_region_at_all_is_told() -> None:
    assert refused(labelme("a.jpg")) == ["no picture has a region; annotate the cars first"]


def test_what_is_not_asked_for_need_not_be_right() -> None:
    file = labelme("a.jpg", ("car", SQUARE), ("horizon", [[0, 9], [63, 9]]))
    content = json.loads(file.read_text())
    content["shapes"][1]["shape_type"] = "linestrip"
    file.write_text(json.dumps(content))
    assert import_masks([file], ("car",), IMAGE, MASK, False) == [MASK / "a.png"]
    assert refused(file, classes=("car", "horizon"), force=True) == [
        "a.json: a.jpg: a linestrip has no inside; draw a polygon for 'horizon'"
    ]


def test_regions_are_drawn_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: weakref.WeakSet[Canvas] = weakref.WeakSet()

    def draw(*_: object) -> np.ndarray:
        canvas = np.zeros((40, 64), np.bool_).view(Canvas)
        alive.add(canvas)
        assert len(alive) <= 3, "one that is drawn, one before it, and the whole"
        return canvas

    monkeypatch.setattr(annotations, "_draw", draw)
    files = [labelme(f"{name}.jpg", *[("car", SQUARE)] * 9) for name in ("a", "b")]
    assert len(import_masks(files, (), IMAGE, MASK, False)) == 2


class Canvas(np.ndarray):
    """An array that can be watched."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_accents_may_be_written_in_two_ways() -> None:
    one, other = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    (IMAGE / "a.jpg").rename(IMAGE / f"{other}.jpg")
    assert import_masks([labelme(f"{one}.jpg", ("car", SQUARE))], (), IMAGE, MASK, False) == [
        MASK / f"{one}.png"
    ]


def test_a_path_of_windows_names_its_photo() -> None:
    Path("c.json").write_text(json.dumps({
        "images": [{"id": 1, "file_name": "images\\a.jpg", "height": 40, "width": 64}],
        "categories": [{"id": 1, "name": "car"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1,
                         "segmentation": [[8, 10, 29, 10, 29, 19]]}],
    }))  # fmt: skip
    assert import_masks([Path("c.json")], (), IMAGE, MASK, False) == [MASK / "a.png"]


@pytest.mark.parametrize("ending", ["webp", "HEIC", "nef"])
def test_a_photo_of_another_kind_is_named(ending: str) -> None:
    (IMAGE / "a.jpg").rename(IMAGE / f"a.{ending}")
    (IMAGE / "a.json").write_text("{}")
    file = labelme("a.jpg", ("car", SQUARE))
    assert refused(file) == [f"Image/a.{ending}: is not a .jpg file; convert it"]


def test_a_file_without_regions_has_no_classes_to_tell() -> None:
    file = labelme("a.jpg")
    assert refused(file, classes=("car",)) == ["no picture has a region; annotate the cars first"]
