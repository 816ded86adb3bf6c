"""The snapshot of the user's pairs: checked, copied, and nothing of the user's ever changed."""

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import LONG, SHORT, contents, oriented, write_pairs
from PIL import Image

from carseg import dataset
from carseg.dataset import SAMPLE, snapshot
from carseg.errors import CarsegError
from carseg.sample import render_sample

IMAGE, MASK, TARGET = Path("Image"), Path("Mask"), Path("dataset")
Tree = dict[str, tuple[bytes, int]]


def tree(*folders: Path) -> Tree:
    """Every file's bytes and time of its last change."""
    return {
        path.as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def faults() -> list[str]:
    with pytest.raises(CarsegError) as caught:
        snapshot(Path(), TARGET)
    return str(caught.value).splitlines()


@pytest.fixture(autouse=True)
def rendered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """An empty project and a stand-in for the renderer; gives the folders it was called with."""
    calls: list[Path] = []

    def render(images: Path, masks: Path) -> None:
        calls.append(images)
        write_pairs(images, masks, 3)

    monkeypatch.setattr(dataset, "render_sample", render)
    monkeypatch.chdir(tmp_path)
    for folder in (IMAGE, MASK):
        folder.mkdir()
        (folder / "README.md").write_text("Put files here.")
    return calls


@pytest.fixture
def own() -> Tree:
    """Four pairs of the user's own."""
    write_pairs(IMAGE, MASK, 4)
    return tree(IMAGE, MASK)


def test_pairs_are_copied_to_the_byte(own: Tree, rendered: list[Path]) -> None:
    pairs = snapshot(Path(), TARGET)
    assert [pair.name for pair in pairs] == ["0", "1", "2", "3"]
    copies = {name: text for name, (text, _) in own.items() if "README" not in name}
    assert contents(TARGET) == copies
    assert tree(IMAGE, MASK) == own
    assert rendered == []


def test_copies_are_files_of_their_own(own: Tree) -> None:
    (IMAGE / "0.jpg").rename("elsewhere.jpg")
    (IMAGE / "0.jpg").symlink_to(Path("../elsewhere.jpg"))
    for _ in range(2):
        snapshot(Path(), TARGET)
    for path in (path for path in TARGET.rglob("*") if path.is_file()):
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
        assert not path.samefile(Path(*path.parts[1:]))


def test_the_snapshot_follows_the_users_folders(own: Tree) -> None:
    snapshot(Path(), TARGET)
    for path in (IMAGE / "0.jpg", MASK / "0.png"):
        path.unlink()
    shutil.copy(IMAGE / "1.jpg", IMAGE / "9.jpg")
    shutil.copy(MASK / "1.png", MASK / "9.png")
    snapshot(Path(), TARGET)
    assert names(TARGET / "Image") == ["1.jpg", "2.jpg", "3.jpg", "9.jpg"]
    assert names(TARGET / "Mask") == ["1.png", "2.png", "3.png", "9.png"]


def test_a_mask_of_another_size_is_named_with_both_sizes(own: Tree) -> None:
    # Only turned: as many pixels, but the other way round.
    with Image.open(MASK / "0.png") as mask:
        mask.transpose(Image.Transpose.ROTATE_90).save(MASK / "0.png")
    assert faults() == [
        f"Mask/0.png: is {SHORT}x{LONG} but Image/0.jpg is {LONG}x{SHORT}; one of them is turned, "
        "by its EXIF tag or by hand; turn the wrong one, or give the mask its photo's tag "
        "(docs/photos.md)"
    ]


def test_a_photo_turned_by_its_camera_is_compared_as_it_is_seen(own: Tree) -> None:
    with Image.open(IMAGE / "0.jpg") as photo:
        photo.save(IMAGE / "0.jpg", exif=oriented(6))
    (line,) = faults()
    assert f"Image/0.jpg is {SHORT}x{LONG}" in line
    with Image.open(MASK / "0.png") as mask:
        mask.transpose(Image.Transpose.ROTATE_270).save(MASK / "0.png")
    assert len(snapshot(Path(), TARGET)) == 4


@pytest.mark.parametrize("count", [1, 12])
def test_masks_that_seem_inverted_are_told_of_and_kept(
    count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pairs(IMAGE, MASK, 13)
    for i in range(count):
        path = MASK / f"{i}.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert len(snapshot(Path(), TARGET)) == 13
    lines = [line for line in capsys.readouterr().err.splitlines() if "rim" in line]
    assert len(lines) == min(count, 11)
    assert lines[0] == (
        "carseg: warning: Mask/0.png: is white along most of its rim; if its car is black, invert "
        "it (docs/photos.md)"
    )
    if count > 10:
        assert lines[-1] == "carseg: warning: and 2 more are white along most of their rim"


@pytest.mark.parametrize("own_count", [0, 3])
def test_a_sample_among_photos_of_ones_own_is_told_of(
    own_count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who forgets to remove it would train on renderings without noticing."""
    render_sample(IMAGE, MASK, count=2, long_side=96)
    write_pairs(IMAGE, MASK, own_count)
    assert len(snapshot(Path(), TARGET)) == own_count + 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "sample" in line]
    said = (
        "carseg: warning: Image/01.jpg: is of the rendered sample, as are 2 of 5 photos; remove "
        "them and their masks, as they would validate, too"
    )
    assert lines == ([said] if own_count else [])


def test_a_car_that_fills_the_photo_to_three_sides_is_not_taken_for_inverted(
    own: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.zeros((SHORT, LONG), np.uint8)
    pixels[SHORT // 2 :, 5:-5] = 255
    Image.fromarray(pixels).save(MASK / "0.png")
    snapshot(Path(), TARGET)
    assert "rim" not in capsys.readouterr().err


@pytest.mark.parametrize("border", [0, 255])
@pytest.mark.parametrize("level", [1, 20])
def test_a_label_map_is_told_from_a_mask(level: int, border: int, own: Tree) -> None:
    pixels = np.zeros((SHORT, LONG), np.uint8)
    pixels[8:21, 8:21] = border
    pixels[9:20, 9:20] = level
    Image.fromarray(pixels).save(MASK / "0.png")
    levels = f"0 to {level} and 255" if border else f"0 to {level}"
    assert faults() == [
        f"Mask/0.png: holds the levels {levels} alone, as label maps do; save a mask, 255 "
        "where the car is and 0 elsewhere (docs/photos.md)"
    ]


def test_a_mask_whose_black_is_not_quite_black_at_its_edge_is_none(own: Tree) -> None:
    pixels = np.zeros((SHORT, LONG), np.uint8)
    pixels[9:20, 9:20] = 12
    pixels[10:19, 10:19] = 255
    Image.fromarray(pixels).save(MASK / "0.png")
    snapshot(Path(), TARGET)


@pytest.mark.parametrize("method", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])
def test_a_mask_with_soft_edges_is_a_mask(method: Image.Resampling, own: Tree) -> None:
    small = np.zeros((SHORT // 2, LONG // 2), np.uint8)
    small[8:22, 8:36] = 255
    Image.fromarray(small).resize((LONG, SHORT), method).save(MASK / "0.png")
    assert len(snapshot(Path(), TARGET)) == 4


@pytest.mark.parametrize(("grey", "told"), [(95, None), (105, "21%")])
def test_a_fifth_as_many_dark_grey_pixels_as_white_ones_is_the_limit(
    grey: int, told: str | None, own: Tree
) -> None:
    pixels = np.zeros((SHORT, LONG), np.uint8)
    pixels[10:30, 10:35] = 255  # 500
    pixels[35:36].flat[:grey] = pixels[36:37].flat[: grey - LONG] = 60
    Image.fromarray(pixels).save(MASK / "0.png")
    if told is None:
        assert len(snapshot(Path(), TARGET)) == 4
    else:
        assert f"has {told} as many dark grey pixels" in faults()[0]


@pytest.mark.parametrize("level", [0, 127])
def test_a_mask_without_a_car_is_refused(level: int, own: Tree) -> None:
    Image.new("L", (LONG, SHORT), level).save(MASK / "0.png")
    assert faults() == [
        f"Mask/0.png: has nothing white in it, its brightest level is {level} of 255; "
        "paint the car white"
        + (
            ", or convert the mask (docs/photos.md)"
            if level
            else ", 65535 where a mask has 16 bits, or leave out a photo without one"
        )
    ]


def test_a_single_white_pixel_is_a_car(own: Tree) -> None:
    pixels = np.zeros((SHORT, LONG), np.uint8)
    pixels[-1, -1] = 255
    Image.fromarray(pixels).save(MASK / "0.png")
    assert len(snapshot(Path(), TARGET)) == 4


def test_all_faults_are_told_at_once_and_the_old_snapshot_stays(own: Tree) -> None:
    snapshot(Path(), TARGET)
    before = tree(TARGET)
    (IMAGE / "0.jpg").write_bytes((IMAGE / "0.jpg").read_bytes()[:1000])
    Image.new("L", (LONG, LONG), 255).save(MASK / "1.png")
    Image.new("L", (LONG, SHORT)).save(MASK / "2.png")
    (MASK / "3.png").write_text("no picture")
    changed = tree(IMAGE, MASK)
    starts = [
        "Image/0.jpg: cannot be read",
        "Mask/1.png: is",
        "Mask/2.png: has nothing",
        "Mask/3.png",
    ]
    found = faults()
    assert len(found) == 4
    assert all(line.startswith(start) for line, start in zip(sorted(found), starts, strict=True))
    assert tree(TARGET) == before
    assert tree(IMAGE, MASK) == changed
    assert sorted(os.listdir()) == ["Image", "Mask", "dataset"]


def test_photos_that_show_the_same_are_told_of_and_used(
    own: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot(Path(), TARGET)
    assert capsys.readouterr().err == ""
    with Image.open(IMAGE / "1.jpg") as photo:
        photo.save(IMAGE / "other.jpg", quality=70)
    shutil.copy(MASK / "1.png", MASK / "other.png")
    assert len(snapshot(Path(), TARGET)) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("carseg: warning: Image/other.jpg: shows the same as Image/1.jpg; ")


def test_of_many_doubles_only_some_are_told_and_the_rest_counted(
    own: Tree, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(25):
        shutil.copy(IMAGE / "1.jpg", IMAGE / f"double{i}.jpg")
        shutil.copy(MASK / "1.png", MASK / f"double{i}.png")
    snapshot(Path(), TARGET)
    *lines, last = capsys.readouterr().err.splitlines()
    assert len({line.split()[2] for line in lines}) == len(lines) == 10
    assert last == "carseg: warning: and 15 more show the same"


def test_files_changed_while_they_are_read_are_not_taken(
    own: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def edited(source: Path, target: Path) -> None:
        copy(source, target)
        if Path(source).name == "2.png":
            (IMAGE / "0.jpg").write_bytes((IMAGE / "2.jpg").read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(dataset.shutil, "copyfile", edited)
        assert faults() == ["Image, Mask: were changed while they were read; run it again"]
    assert not TARGET.exists()
    assert sorted(os.listdir()) == ["Image", "Mask"]
    snapshot(Path(), TARGET)
    assert (TARGET / "Image/0.jpg").read_bytes() == (IMAGE / "0.jpg").read_bytes()


@pytest.mark.parametrize("file", [IMAGE / "0.jpg", MASK / "0.png"])
def test_a_file_of_the_same_size_is_another_when_it_was_written_anew(
    file: Path, own: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copyfile

    def edited(source: Path, target: Path) -> None:
        copy(source, target)
        if Path(source).name == "2.png":
            file.write_bytes(file.read_bytes())

    monkeypatch.setattr(dataset.shutil, "copyfile", edited)
    assert faults() == ["Image, Mask: were changed while they were read; run it again"]


def test_files_that_may_not_be_read_are_told_of_with_what_to_do(
    own: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, closed = Path.read_bytes, (IMAGE / "0.jpg", MASK / "1.png")

    def refuse(path: Path) -> bytes:
        if path in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert faults() == [f"{path}: may not be read; change its permissions" for path in closed]
    assert not TARGET.exists()


@pytest.mark.parametrize(("kept", "lost"), [(IMAGE, MASK), (MASK, IMAGE)])
def test_one_empty_folder_is_a_fault_and_not_filled(
    kept: Path, lost: Path, own: Tree, rendered: list[Path]
) -> None:
    for path in lost.glob("[0-9].*"):
        path.unlink()
    assert len(faults()) == 4
    assert rendered == []
    assert names(lost) == ["README.md"]
    assert not TARGET.exists()


def test_empty_folders_get_the_sample_once(rendered: list[Path]) -> None:
    assert [pair.name for pair in snapshot(Path(), TARGET)] == ["0", "1", "2"]
    assert names(IMAGE) == ["0.jpg", "1.jpg", "2.jpg", "README.md"]
    assert names(MASK) == ["0.png", "1.png", "2.png", "README.md"]
    assert names(TARGET / "Image") == ["0.jpg", "1.jpg", "2.jpg"]
    assert sorted(os.listdir()) == ["Image", "Mask", "dataset"]
    before = tree(IMAGE, MASK)
    snapshot(Path(), TARGET)
    assert len(rendered) == 1
    assert tree(IMAGE, MASK) == before


def test_folders_that_are_gone_are_made_again() -> None:
    shutil.rmtree(IMAGE)
    shutil.rmtree(MASK)
    assert len(snapshot(Path(), TARGET)) == 3
    assert names(IMAGE) == ["0.jpg", "1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("size", "nfiles", "own"),
    [(2_602_533, 40, False), (2_600_000, 40, False), (2_500_000, 40, True), (2_602_533, 42, True)],
)
def test_no_sample_is_rendered_in_place_of_photos_that_were_there(
    size: int, nfiles: int, own: bool, rendered: list[Path]
) -> None:
    known = {"path": "dataset", "md5": "1.dir", "size": size, "nfiles": nfiles}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"dataset": {"outs": [known]}}}))
    if own:
        assert len(faults()) == 1
        assert re.match("Image, Mask: are empty, but .*: dvc checkout dataset", faults()[0])
        assert names(IMAGE) == ["README.md"]
        write_pairs(IMAGE, MASK, 1)
        assert len(snapshot(Path(), TARGET)) == 1
    else:
        assert len(snapshot(Path(), TARGET)) == 3
    assert len(rendered) == (not own)


def test_a_rendering_that_was_cut_off_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(images: Path, masks: Path) -> None:
        write_pairs(images, masks, 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "render_sample", render)
    with pytest.raises(KeyboardInterrupt):
        snapshot(Path(), TARGET)
    assert sorted(os.listdir()) == ["Image", "Mask"]
    assert names(IMAGE) == names(MASK) == ["README.md"]


@pytest.mark.parametrize("moved", [0, 1, 3, 4, 6])
def test_a_move_that_was_cut_off_is_taken_up_again(
    moved: int, monkeypatch: pytest.MonkeyPatch, rendered: list[Path]
) -> None:
    moves = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal moves
        if Path(target).parent in (IMAGE, MASK):
            if moves == moved:
                raise KeyboardInterrupt
            moves += 1
        rename(source, target)

    def rmtree(path: Path, **_: object) -> None:
        if Path(path) == Path(SAMPLE):
            raise KeyboardInterrupt

    rename = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if moved == 6:
            patch.setattr(dataset.shutil, "rmtree", rmtree)
        with pytest.raises(KeyboardInterrupt):
            snapshot(Path(), TARGET)
    assert Path(SAMPLE).exists()
    assert len([*IMAGE.glob("*.jpg"), *MASK.glob("*.png")]) == moved
    assert len(snapshot(Path(), TARGET)) == 3
    assert len(rendered) == 1, "the sample was rendered whole before"
    assert sorted(os.listdir()) == ["Image", "Mask", "dataset"]


def test_the_sample_goes_into_folders_on_another_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: Path, target: Path) -> None:
        if Path(source).absolute().parent != Path(target).absolute().parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", replace)
    assert len(snapshot(Path(), TARGET)) == 3
    assert names(IMAGE) == ["0.jpg", "1.jpg", "2.jpg", "README.md"]


@pytest.mark.parametrize("name", ["mine", "1"])
def test_a_move_that_was_cut_off_is_not_taken_up_among_photos_of_the_users(
    name: str, rendered: list[Path]
) -> None:
    for folder in (IMAGE, MASK):
        (Path(SAMPLE) / folder).mkdir(parents=True)
    write_pairs(Path(SAMPLE) / IMAGE, Path(SAMPLE) / MASK, 3)
    shutil.copyfile(Path(SAMPLE) / IMAGE / "0.jpg", IMAGE / f"{name}.jpg")
    shutil.copyfile(Path(SAMPLE) / MASK / "0.png", MASK / f"{name}.png")
    before = tree(IMAGE, MASK)
    assert [pair.name for pair in snapshot(Path(), TARGET)] == [name]
    assert tree(IMAGE, MASK) == before
    assert not Path(SAMPLE).exists()
    assert rendered == []


def test_taking_up_a_move_overwrites_no_file_of_the_users() -> None:
    for folder in (IMAGE, MASK):
        (Path(SAMPLE) / folder).mkdir(parents=True)
    write_pairs(Path(SAMPLE) / IMAGE, Path(SAMPLE) / MASK, 2)
    (IMAGE / "1.jpg").write_bytes((Path(SAMPLE) / IMAGE / "0.jpg").read_bytes())
    before = (IMAGE / "1.jpg").read_bytes()
    with pytest.raises(CarsegError, match=r"Image/1\.jpg: has no mask"):
        snapshot(Path(), TARGET)
    assert (IMAGE / "1.jpg").read_bytes() == before


def test_a_copy_made_by_dvc_takes_the_pairs_from_home(
    elsewhere: Callable[[str], Path], rendered: list[Path]
) -> None:
    images, masks = elsewhere("Image"), elsewhere("Mask")
    write_pairs(images, masks, 2)
    before = tree(images, masks)
    assert len(snapshot(Path(), TARGET)) == 2
    assert names(TARGET / "Image") == ["0.jpg", "1.jpg"]
    assert names(IMAGE) == ["0.jpg", "1.jpg", "README.md"], "DVC records the copy's own folders"
    assert not (IMAGE / "0.jpg").samefile(images / "0.jpg")
    assert tree(images, masks) == before
    assert rendered == []


def test_faults_at_home_are_told_and_nothing_is_rendered(
    elsewhere: Callable[[str], Path], rendered: list[Path]
) -> None:
    masks = elsewhere("Mask")
    write_pairs(elsewhere("Image"), masks, 2)
    (masks / "1.png").unlink()
    (line,) = faults()
    assert "1.jpg: has no mask" in line
    assert rendered == []


def test_masks_alone_at_home_are_a_fault_too(
    elsewhere: Callable[[str], Path], rendered: list[Path]
) -> None:
    images = elsewhere("Image")
    write_pairs(images, elsewhere("Mask"), 2)
    for path in images.iterdir():
        path.unlink()
    assert all("has no photo" in line for line in faults())
    assert rendered == []


def test_pairs_here_come_before_those_at_home(elsewhere: Callable[[str], Path], own: Tree) -> None:
    write_pairs(elsewhere("Image"), elsewhere("Mask"), 2)
    assert len(snapshot(Path(), TARGET)) == 4


def test_another_project_that_runs_this_one_is_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rendered: list[Path]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    write_pairs(IMAGE, MASK, 2)
    Path("ours").mkdir()
    monkeypatch.chdir("ours")
    assert len(snapshot(Path(), TARGET)) == len(rendered) + 2 == 3


@pytest.mark.parametrize("home", ["", "nowhere"])
def test_a_home_without_pairs_is_no_other_place(
    home: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rendered: list[Path]
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / home))
    assert len(snapshot(Path(), TARGET)) == 3
    assert len(rendered) == 1
