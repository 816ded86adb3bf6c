"""`carseg predict`: every photo done or named, nothing lost."""

import glob
import io
import os
import signal
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from conftest import crumbs, oriented, run_carseg, uneven
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from project import heed_interruptions
from torch import Tensor

from carseg import weights
from carseg.batch import as_line, predict
from carseg.dataset import snapshot
from carseg.errors import CarsegError
from carseg.files import write_bytes
from carseg.inputs import list_photos, matches, read
from carseg.model import Model, Picture, as_photo
from carseg.outputs import Job, Kinds, plan
from carseg.u2net import U2Net


class Red(Model):
    """Takes for car what is red: no network, but a model like any other."""

    def __init__(self) -> None:
        super().__init__(lambda photos: photos)
        self.asked: list[tuple[bool, bool]] = []

    def predict(
        self, picture: Picture, *, d4: bool = False, closer: bool = False
    ) -> NDArray[np.float32]:
        self.asked.append((d4, closer))
        return np.asarray(as_photo(picture))[..., 0].astype(np.float32) / np.float32(255)


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """A red car, half of it darker, before black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[5:20, 4:30] = (255, 20, 30)
    pixels[5:20, 4:10] = (102, 20, 30)
    return Image.fromarray(pixels)


@pytest.fixture(autouse=True)
def _photos(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos/more").mkdir(parents=True)
    photo().save("photos/a.png")
    photo(30, 40).save("photos/b.png")
    photo().save("photos/more/c.png")
    Path("photos/notes.txt").write_text("not a photo")
    photo().save("photos/.hidden.png")


def do(
    *paths: str,
    kinds: tuple[str, ...] = (),
    background: str | None = None,
    threshold: float = 0.5,
    cleanup: bool = False,
    out: str = "out",
    jobs: int | None = None,
    **options: bool,
) -> None:
    made = Kinds(kinds, threshold, background, cleanup)
    predict(paths, Path(out), Red, made, jobs=jobs, **options)


def files(folder: str = "out") -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def pixels(path: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_folder_becomes_masks_of_the_photos_own_size(capsys: pytest.CaptureFixture[str]) -> None:
    do("photos")
    assert files() == ["a.png", "b.png"]
    assert capsys.readouterr().err == "2 of 2 photos done, in out\n"
    expected = np.where(np.asarray(photo())[..., 0] > 127, 255, 0)
    assert np.array_equal(pixels("out/a.png"), expected)
    assert pixels("out/b.png").shape == (40, 30)


def test_the_threshold_decides() -> None:
    do("photos/a.png", threshold=0.4)  # as what is darker has it
    assert np.array_equal(pixels("out/a.png") > 0, np.asarray(photo())[..., 0] > 0)


def test_the_threshold_moves_no_soft_edge_unless_masks_are_cleaned_up() -> None:
    Image.fromarray((crumbs()[..., None] * (255, 0, 0)).astype(np.uint8)).save("photos/a.png")
    for cleanup, alike in ((False, True), (True, False)):
        made = []
        for threshold in (0.2, 0.95):
            out = f"{cleanup}{threshold}"
            do("photos/a.png", kinds=("cutout",), threshold=threshold, cleanup=cleanup, out=out)
            made.append(Path(out, "a.png").read_bytes())
        assert (made[0] == made[1]) == alike


def test_every_kind_is_cleaned_up() -> None:
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[..., 0] = (crumbs() * 255).round()
    Image.fromarray(picture).save("photos/a.png")
    options = {"kinds": ("mask", "cutout", "overlay"), "background": "white"}
    do("photos/a.png", **options, out="as it is")  # type: ignore[arg-type]
    do("photos/a.png", **options, out="clean", cleanup=True)  # type: ignore[arg-type]
    piece, hole = np.s_[25:27, 29:34], np.s_[10:13, 9:12]
    assert (pixels("as it is/a_mask.png")[piece] == 255).all()
    assert not pixels("clean/a_mask.png")[piece].any()
    assert (pixels("clean/a_mask.png")[hole] == 255).all()
    assert not pixels("clean/a_cutout.png")[piece][..., 3].any()
    assert (pixels("clean/a_cutout.png")[hole][..., 3] == 255).all()
    assert pixels("as it is/a_overlay.jpg")[piece][..., 1].mean() > 20
    assert pixels("clean/a_overlay.jpg")[piece][..., 1].mean() < 20
    assert pixels("clean/a_background.jpg")[piece].min() > 230


def test_folders_in_folders_are_asked_for_and_keep_their_places() -> None:
    do("photos", recursive=True)
    assert files() == ["a.png", "b.png", "more/c.png"]


def test_patterns_are_expanded_where_the_shell_did_not() -> None:
    do("photos/*.png")
    assert files() == ["a.png", "b.png"]


def test_two_asterisks_reach_every_folder_without_being_asked_to() -> None:
    do("photos/**/*.png")
    assert files() == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("again", [False, True])
def test_results_are_no_photos_of_a_second_run(again: bool) -> None:
    before = list_photos(["."], recursive=True, out=Path("photos/made"))
    do(".", recursive=True, out="photos/made")
    assert list_photos(["."], recursive=True, out=Path("photos/made")) == before
    if again:
        do(".", recursive=True, out="photos/made", force=True)
    assert files("photos/made") == ["photos/a.png", "photos/b.png", "photos/more/c.png"]
    assert len(list_photos(["photos/made"], recursive=True, out=Path("photos/made"))) == 3, (
        "as named"
    )
    do("photos/[ab]*", out="photos/made/again")
    found = list_photos(["photos/made/*"], recursive=True, out=Path("photos/made/again"))
    assert [path.name for path, _ in found] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("pattern", ["photos/**/*.*g", "photos/**", "photos/*/*.*g", "**/*.*g"])
def test_results_that_a_pattern_matches_are_no_photos(pattern: str) -> None:
    made = Path("photos/over")
    before = list_photos([pattern], recursive=True, out=made)
    assert Path("photos/more/c.png") in dict(before)
    do("photos", kinds=("overlay",), recursive=True, out=str(made))
    assert files(str(made)) == ["a.jpg", "b.jpg", "more/c.jpg"]
    assert list_photos([pattern], recursive=True, out=made) == before
    assert len(list_photos([pattern], recursive=True, out=Path("out"))) > len(before)


def test_that_results_are_passed_over_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    made = Path("photos/over")
    list_photos(["photos/**/*.png"], recursive=True, out=made)
    assert capsys.readouterr().err == ""
    do("photos", recursive=True, out=str(made))
    capsys.readouterr()
    list_photos(["photos/**/*.png"], recursive=True, out=made)
    told = "photos/**/*.png: what it matches in photos/over is taken for results, and passed over"
    assert capsys.readouterr().err == f"carseg: warning: {told}\n"


def test_photos_of_a_pattern_may_get_masks_beside_them() -> None:
    Path("cars").mkdir()
    photo().save("cars/a.jpg")
    do("cars/*.jpg", out="cars")
    assert files("cars") == ["a.jpg", "a.png"]
    with pytest.raises(CarsegError, match=r"^car\*: matches nothing but results, in cars; name"):
        do("car*", out="cars")


def test_a_folder_without_photos_that_a_pattern_matches_stops_nothing() -> None:
    Path("photos/empty").mkdir()
    do("photos/*[!t]")
    assert files() == ["a.png", "b.png", "c.png"]
    with pytest.raises(CarsegError, match=r"^photos/e\*: holds no photo; name another folder"):
        do("photos/e*")


def test_photos_keep_the_order_and_name_of_their_first_mention() -> None:
    found = list_photos(["photos/b.png", "photos", "photos/more/*", "photos/more"], recursive=True)
    assert [name.as_posix() for _, name in found] == ["b", "a", "more/c"]


def test_kinds_go_beside_each_other() -> None:
    do("photos/a.png", kinds=("mask", "cutout", "overlay"), background="#00ff00")
    assert files() == ["a_background.jpg", "a_cutout.png", "a_mask.png", "a_overlay.jpg"]
    found = np.asarray(photo())[..., 0]
    cutout = pixels("out/a_cutout.png")
    assert np.array_equal(cutout[..., :3], np.asarray(photo()))
    assert np.array_equal(cutout[..., 3], found), "as soft as the net is unsure"
    green = pixels("out/a_background.jpg")
    assert np.abs(green[25, 35].astype(int) - (0, 255, 0)).max() < 8
    assert np.abs(green[12, 20].astype(int) - (255, 20, 30)).max() < 8
    tinted = pixels("out/a_overlay.jpg").astype(int)
    assert np.abs(tinted[25, 35]).max() < 8, "what is no car stays as it is"
    assert tinted[12, 20, 1] > 60, "the car is tinted green"


def test_of_what_is_cut_away_nothing_is_left_in_the_file() -> None:
    picture = np.asarray(photo()) | np.array([0, 0, 200], np.uint8)
    Image.fromarray(picture).save("photos/a.png")
    do("photos/a.png", kinds=("cutout",))
    made = pixels("out/a.png")
    assert not made[made[..., 3] == 0].any()
    assert np.array_equal(made[made[..., 3] > 0][:, :3], picture[picture[..., 0] > 0])


def test_drafts_are_masks_that_the_pipeline_takes() -> None:
    """As README has them drawn, of photos of either ending, held in any way."""
    Path("Image").mkdir()
    photo().save("Image/a.jpeg")
    photo(30, 44).save("Image/b.jpg", exif=oriented(6))
    predict(["Image"], Path("Mask"), Red, Kinds([], 0.5, None), skip_existing=True)
    assert [pair.name for pair in snapshot(Path(), Path("dataset"))] == ["a", "b"]
    assert pixels("dataset/Mask/b.png").shape == (30, 44)


def test_no_draft_is_made_beside_a_mask_whose_ending_is_written_otherwise() -> None:
    for folder in ("Image", "Mask"):
        Path(folder).mkdir()
    for stem in ("a", "b\N{LATIN SMALL LETTER U WITH DIAERESIS}"):
        photo().save(f"Image/{stem}.JPG")
    Path("Mask/a.PNG").touch()
    Path("Mask/bu\N{COMBINING DIAERESIS}.png").touch()  # as macOS writes it
    predict(["Image"], Path("Mask"), Red, Kinds([], 0.5, None), skip_existing=True)
    assert all(path.stat().st_size == 0 for path in Path("Mask").iterdir())
    assert len(list(Path("Mask").iterdir())) == 2


def test_what_is_transparent_in_a_photo_is_white() -> None:
    hidden = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    hidden.save("rgba.png")
    hidden.convert("LA").save("la.png")
    palette = photo().convert("P")
    palette.save("p.png", transparency=palette.getpixel((0, 0)))
    deep = np.full((30, 40), 65535, np.uint16)
    deep[:10] = 300
    Image.fromarray(deep).save("grey16.png", transparency=300)
    for mode, key in (("L", 0), ("RGB", (0, 0, 0))):
        photo().convert(mode).save(f"{mode}.png", transparency=key)
    for name in ("rgba", "la", "grey16", "L", "RGB", "p"):
        seen = np.asarray(read(Path(f"{name}.png").read_bytes(), Path(f"{name}.png")))
        assert (seen[0, 0] == 255).all(), name
    assert np.abs(seen[10, 20].astype(int) - (255, 20, 30)).max() < 60


def swapped() -> bytes:
    """A profile in which red is the sRGB profile's green, and green its red."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name, other in ((b"rXYZ", b"g___"), (b"gXYZ", b"rXYZ"), (b"g___", b"gXYZ")):
        profile = profile.replace(name, other)
    return bytes(profile)


@pytest.mark.parametrize("background", ["red", "scene.png", "print.tif"])
def test_a_background_has_the_colours_that_it_is_given_in(background: str) -> None:
    Image.new("RGB", (7, 9), "red").save("scene.png")
    Image.new("CMYK", (7, 9), (0, 255, 255, 0)).save("print.tif", icc_profile=b"of CMYK")
    photo().save("photos/a.png", icc_profile=swapped())
    do("photos/a.png", background=background)
    with Image.open("out/a.jpg") as made:
        assert made.info["icc_profile"] == swapped()
    assert np.abs(pixels("out/a.jpg")[25, 35].astype(int) - (0, 255, 0)).max() < 12


def test_a_transparent_background_has_the_colours_of_its_own_profile() -> None:
    Image.new("RGBA", (7, 9), "red").save("scene.png", icc_profile=swapped())
    do("photos", background="scene.png")
    for name in ("a", "b"):
        found = pixels(f"out/{name}.jpg")[25, -1].astype(int)
        assert np.abs(found - (0, 255, 0)).max() < 12


def test_an_empty_profile_is_none() -> None:
    Image.new("RGB", (7, 9), "red").save("scene.png")
    bare = photo()
    bare.info["icc_profile"] = b""  # as of a JPEG whose marker has no data
    ((_, content),) = Kinds([], 0.5, "scene.png").make(bare, np.zeros((30, 40), np.float32))
    with Image.open(io.BytesIO(content)) as made:
        assert np.abs(np.asarray(made)[0, 0].astype(int) - (255, 0, 0)).max() < 8


def test_a_broken_profile_stops_nothing() -> None:
    photo().save("photos/a.png", icc_profile=b"broken")
    do("photos/a.png", background="red")
    assert np.abs(pixels("out/a.jpg")[25, 35].astype(int) - (255, 0, 0)).max() < 8


def test_what_a_background_tells_of_itself_stays_there() -> None:
    Image.new("RGB", (7, 9), "blue").save("scene.jpg", comment=b"my garden")
    do("photos/a.png", background="scene.jpg")
    with Image.open("out/a.jpg") as made:
        assert "comment" not in made.info


def test_a_picture_is_a_background_too() -> None:
    Image.new("RGB", (7, 9), "blue").save("scene.png")
    do("photos/a.png", background="scene.png")
    assert np.abs(pixels("out/a.jpg")[25, 35].astype(int) - (0, 0, 255)).max() < 8


def test_views_are_averaged_and_a_closer_look_taken_when_asked() -> None:
    model = Red()
    ways = [(False, False), (True, False), (False, True)]
    for i, (d4, closer) in enumerate(ways):
        kinds = Kinds((), 0.5, None)
        predict(["photos/a.png"], Path(f"out{i}"), lambda: model, kinds, d4=d4, closer=closer)
    assert model.asked == ways


def test_exif_and_colour_profile_are_carried_over_and_the_camera_heeded() -> None:
    exif = oriented(6)
    exif[ExifTags.Base.Make] = "A camera"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = photo().transpose(Image.Transpose.ROTATE_90)
    turned.save("turned.png", exif=exif, icc_profile=profile)
    do("turned.png", kinds=("mask", "cutout", "overlay"))
    assert np.array_equal(pixels("out/turned_cutout.png")[..., :3], np.asarray(photo()))
    assert pixels("out/turned_mask.png").shape == (30, 40)
    for name in ("cutout.png", "overlay.jpg"):
        with Image.open(f"out/turned_{name}") as made:
            assert made.getexif()[ExifTags.Base.Make] == "A camera"
            assert made.getexif().get(ExifTags.Base.Orientation, 1) == 1, "it is upright now"
            assert made.info["icc_profile"] == profile
            assert made.size == (40, 30)


def test_where_a_photo_was_taken_stays_in_cutouts_and_not_in_masks() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "A camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    photo().save("there.jpg", exif=exif)
    do("there.jpg", kinds=("mask", "cutout"))
    with Image.open("out/there_mask.png") as made:
        assert not made.getexif()
        assert "exif" not in made.info
    with Image.open("out/there_cutout.png") as made:
        place = made.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert place[ExifTags.GPS.GPSLatitudeRef] == "N"


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_exif_data_outlive_every_format(suffix: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    photo().save(f"photos/shot.{suffix}", exif=exif.tobytes())
    do(f"photos/shot.{suffix}", kinds=("overlay", "cutout"))
    for name in ("shot_overlay.jpg", "shot_cutout.png"):
        with Image.open(f"out/{name}") as made:
            assert made.getexif()[ExifTags.Base.Make] == "Camera", name


def with_preview(preview: bytes) -> bytes:
    """EXIF data of a camera: its name, then a second directory with a small JPEG in it."""
    name = b"Camera\0\0"
    first, second = 8, 8 + 2 + 12 + 4 + len(name)
    at = second + 2 + 2 * 12 + 4
    return b"".join(
        (
            b"Exif\0\0II*\0",
            struct.pack("<I", first),
            struct.pack("<HHHIII", 1, 0x010F, 2, 7, first + 18, second) + name,
            struct.pack("<H", 2),
            struct.pack("<HHII", 0x0201, 4, 1, at),
            struct.pack("<HHII", 0x0202, 4, 1, len(preview)),
            struct.pack("<I", 0) + preview,
        )
    )


def test_the_preview_of_a_photo_as_it_was_is_left_out() -> None:
    """It shows what the result does not: the background."""
    preview = io.BytesIO()
    photo().save(preview, "JPEG")
    exif = with_preview(preview.getvalue())
    photo().save("photos/shot.jpg", exif=exif)
    with Image.open("photos/shot.jpg") as shot:
        assert preview.getvalue() in shot.info["exif"]
        assert shot.getexif().get_ifd(ExifTags.IFD.IFD1), "else Pillow sees none"
    do("photos/shot.jpg", kinds=("overlay", "cutout"), background="white")
    for name in ("shot_overlay.jpg", "shot_cutout.png", "shot_background.jpg"):
        with Image.open(f"out/{name}") as made:
            assert made.getexif()[ExifTags.Base.Make] == "Camera"
            assert preview.getvalue() not in made.info["exif"]
            assert not made.getexif().get_ifd(ExifTags.IFD.IFD1)


def test_notes_that_only_their_maker_reads_are_left_out() -> None:
    """Some cameras keep a preview there."""
    exif = Image.Exif()
    more = exif.get_ifd(ExifTags.IFD.Exif)
    more[ExifTags.Base.MakerNote], more[ExifTags.Base.FNumber] = b"a preview" * 9, 2.0
    for suffix, tag in (("jpg", 1), ("webp", 6)):
        exif[ExifTags.Base.Orientation] = tag
        photo().save(f"photos/shot.{suffix}", exif=exif)
        with Image.open(f"photos/shot.{suffix}") as shot:
            assert b"a preview" in shot.info["exif"]
        do(f"photos/shot.{suffix}", kinds=("cutout",), force=True)
        with Image.open("out/shot.png") as made:
            assert made.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2
            assert b"a preview" not in made.info["exif"]


def test_exif_data_that_cannot_be_written_anew_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera"
    photo().save("photos/shot.jpg", exif=exif)
    content = Path("photos/shot.jpg").read_bytes()
    assert read(content, Path("shot.jpg")).info["exif"]

    def fail(*_: object) -> bytes:
        raise struct.error("required argument is not an integer")

    monkeypatch.setattr(Image.Exif, "tobytes", fail)
    assert not read(content, Path("shot.jpg")).info["exif"]


def test_exif_data_too_long_for_a_jpeg_are_left_out() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "a" * 70_000
    photo().save("photos/a.png", exif=exif)
    do("photos", kinds=("overlay", "cutout"))
    assert len(files()) == 4
    with Image.open("out/a_overlay.jpg") as made:
        assert not made.getexif()
    with Image.open("out/a_cutout.png") as made:
        assert len(made.getexif()[ExifTags.Base.ImageDescription]) == 70_000


def test_a_profile_of_other_colours_is_left_behind() -> None:
    photo().convert("CMYK").save("print.tif", icc_profile=b"of CMYK")
    do("print.tif", kinds=("cutout",))
    with Image.open("out/print.png") as made:
        assert "icc_profile" not in made.info


def test_what_cannot_be_read_is_named_and_the_others_are_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("photos/bad.png").write_bytes(Path("photos/a.png").read_bytes()[:60])
    Path("photos/aa.jpg").write_bytes(b"")
    with pytest.raises(CarsegError) as error:
        do("photos")
    assert str(error.value).splitlines() == [
        "photos/aa.jpg: cannot be read as an image, it is empty; save it anew or leave it out",
        "photos/bad.png: cannot be read as an image (image file is truncated); save it anew or "
        "leave it out",
    ]
    assert files() == ["a.png", "b.png"]
    assert "2 of 4 photos done" in capsys.readouterr().err


def test_a_text_by_the_name_of_a_profile_is_none_and_stops_nothing() -> None:
    text = PngInfo()
    for name in ("icc_profile", "exif", "transparency"):
        text.add_text(name, "of mine")
    photo().save("photos/a.png", pnginfo=text)
    do("photos", kinds=("cutout",))
    assert files() == ["a.png", "b.png"]


@pytest.mark.parametrize("recursive", [False, True])
def test_results_are_not_written_among_the_photos(recursive: bool) -> None:
    with pytest.raises(CarsegError, match=r"^photos: is the photos' own folder; choose another"):
        do("photos", out="photos", recursive=recursive)
    assert files("photos") == [".hidden.png", "a.png", "b.png", "more/c.png", "notes.txt"]
    do("photos/a.png", out="photos/new")  # where no folder was given, that is all right


def test_a_place_that_cannot_be_written_to_is_told_of_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Red, "predict", lambda *_, **__: pytest.fail("computed"))
    Path("out").write_text("a file")
    with pytest.raises(NotADirectoryError, match="'out'"):
        do("photos")


def test_a_full_disk_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path, content: bytes) -> None:
        if path.name != "a.png":
            raise OSError(28, "No space left on device", str(path))
        write_bytes(path, content)

    monkeypatch.setattr("carseg.batch.write_bytes", write)
    photo().save("photos/c.png")
    with pytest.raises(CarsegError, match=r"^out/b\.png: No space .*; make room"):
        do("photos", jobs=1)
    assert capsys.readouterr().err.endswith("1 of 3 photos done, in out\n")


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scan = os.scandir

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == unreadable:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for unreadable in (".Trash", "lost+found", "$RECYCLE.BIN", "System Volume Information"):
        Path("photos", unreadable).mkdir()
        assert len(list_photos(["photos"], recursive=True)) == 3
    Path("photos/@eaDir").mkdir()
    photo().save("photos/@eaDir/SYNOPHOTO_THUMB.png")
    assert len(list_photos(["photos"], recursive=True)) == 3
    unreadable = "more"
    for named in ("photos", "photos/**/*.png"):
        with pytest.raises(PermissionError, match="photos/more"):
            list_photos([named], recursive=True)


def test_links_to_folders_are_not_followed() -> None:
    Path("elsewhere").mkdir()
    photo().save("elsewhere/d.png")
    Path("photos/linked").symlink_to("../elsewhere")
    Path("photos/more/up").symlink_to("..")
    found = list_photos(["photos"], recursive=True)
    assert [name.as_posix() for _, name in found] == ["a", "b", "more/c"]
    photos = [path.as_posix() for path, _ in list_photos(["photos/**/*.png"], recursive=True)]
    assert photos == ["photos/a.png", "photos/b.png", "photos/more/c.png"]
    Path("link").symlink_to("photos")
    named, linked = (list_photos([f"{x}/**"], recursive=True) for x in ("photos", "link"))
    assert [name for _, name in linked] == [name for _, name in named], "one that is named is"
    Path("photos/@eaDir").mkdir()
    photo().save("photos/@eaDir/e.png")
    assert len(list_photos(["photos/**/*.png"], recursive=True)) == 3


def test_links_that_lead_back_have_an_end() -> None:
    """Two of them make two ways on at every step, of which systems go forty."""
    for name in "xy":
        Path("photos/more", name).symlink_to("..")
    for named in ("photos", "photos/**/*.png", "**/*.png"):
        assert len(list_photos([named], recursive=True)) == 3


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("photos/**", ["a.png", "b.png", "more/c.png"]),
        ("photos/**/c.png", ["more/c.png"]),
        ("**/more/*", ["more/c.png"]),
        ("**/[ab].png", ["a.png", "b.png"]),
        ("p*/**/*.png", ["a.png", "b.png", "more/c.png"]),
        ("photos/**/more/**/*.png", ["more/c.png"]),
        ("photos/*", ["a.png", "b.png", "more/c.png"]),
        ("photos/?.png", ["a.png", "b.png"]),
        ("photos/**.png", ["a.png", "b.png"]),
        ("photos/mo*/**", ["more/c.png"]),
        ("photos/*/**/*.png", ["more/c.png"]),
        ("photos/**/", ["a.png", "b.png", "more/c.png"]),
    ],
)
def test_patterns_mean_what_they_mean_elsewhere(pattern: str, found: list[str]) -> None:
    photos = {path for path, _ in list_photos([pattern], recursive=True)} - {
        Path("photos/notes.txt")
    }
    assert sorted(path.relative_to("photos").as_posix() for path in photos) == found
    by_glob = {Path(name) for name in glob.glob(pattern, recursive=True)}
    assert set(matches(pattern)) == by_glob


def test_a_photo_that_is_a_link_to_nothing_is_told_of() -> None:
    link = Path("photos/gone.png")
    link.symlink_to("unplugged.png")
    Path("photos/plan.txt").symlink_to("unplugged.txt")
    found = list_photos(["photos"], recursive=False)
    assert [path.name for path, _ in found] == ["a.png", "b.png", "gone.png"]
    with pytest.raises(FileNotFoundError) as raised:
        link.read_bytes()
    told = as_line(raised.value, Job(link, {}))
    assert told == "photos/gone.png: is a link to a file that is gone; put the file there"


def test_a_pattern_with_a_slash_at_its_end_is_of_folders() -> None:
    Path("plan.txt").touch()
    assert [path.name for path in matches("p*/")] == ["photos"]


def test_a_pattern_on_a_drive_that_is_gone_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: False)
    with pytest.raises(CarsegError, match=r"^/gone/\*\.jpg: there is no such file; check the path"):
        list_photos(["/gone/*.jpg"], recursive=False)


def test_brackets_in_the_name_of_a_folder_are_no_pattern() -> None:
    Path("photos").rename("p [1]")
    assert [name.name for _, name in list_photos(["p [1]/*.png"], recursive=False)] == ["a", "b"]


@pytest.mark.parametrize("ending", ["HEIC", "HIF"])
def test_photos_of_kinds_that_are_not_read_are_told_of(ending: str) -> None:
    Path(f"photos/c.{ending}").write_bytes(b"0000ftypheic")
    with pytest.raises(
        CarsegError, match=rf"^photos/c\.{ending}: .* of a kind that Pillow does not"
    ):
        do("photos")
    assert files() == ["a.png", "b.png"]


def test_films_and_tables_of_data_that_pillow_knows_by_name_are_no_photos() -> None:
    for name in ("clip.mpg", "data.h5", "plan.eps", "drawing.wmf"):
        Path("photos", name).write_bytes(b"0000")
    do("photos")
    assert files() == ["a.png", "b.png"]


@pytest.mark.parametrize("ending", ["NEF", "NRW", "PEF"])
def test_the_preview_in_raw_data_is_not_taken_for_the_photo(ending: str) -> None:
    Image.open("photos/a.png").save(f"photos/c.{ending}", "TIFF")
    with pytest.raises(
        CarsegError, match=rf"^photos/c\.{ending}: is a camera's raw file, .* to JPEG or"
    ):
        do("photos")
    assert files() == ["a.png", "b.png"]


def test_only_what_lies_below_a_pattern_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, seen = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(str(path)) or scan(path))
    Path("photos/private").mkdir()
    assert [path for path, _ in list_photos(["photos/mo*/**/*.png"], recursive=True)] == [
        Path("photos/more/c.png")
    ]
    assert not any("private" in path for path in seen)
    seen.clear()
    with pytest.raises(CarsegError, match=r"^/nowhere/\*\*/\*\.jpg: there is no such file"):
        list_photos(["/nowhere/**/*.jpg"], recursive=True)
    assert set(seen) <= {"/"}


@pytest.mark.parametrize("tag", [{254: 1}, {50706: b"\x01\x04\x00\x00"}])
def test_raw_data_are_known_whatever_they_are_called(tag: dict[int, int | bytes]) -> None:
    Image.open("photos/a.png").save("photos/c.tif", "TIFF", tiffinfo=tag)
    with pytest.raises(CarsegError, match=r"^photos/c\.tif: is a camera's raw file, of which a"):
        do("photos")
    assert files() == ["a.png", "b.png"]


def test_a_raw_file_beside_a_photo_changes_no_name() -> None:
    for name in ("a.ARW", "b.heic"):
        Path("photos", name).write_bytes(b"0000")
    with pytest.raises(CarsegError) as error:
        do("photos")
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "photos/a.ARW",
        "photos/b.heic",
    ]
    assert files() == ["a.png", "b.png"]


def test_too_many_pixels_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(CarsegError, match=r"^photos/a\.png: has too many pixels .*; scale it down"):
        do("photos/a.png")


@pytest.mark.skipif(sys.platform == "win32", reason="the limit there is of the whole path")
def test_a_name_that_gets_too_long_is_told_of() -> None:
    name = "a" * 245
    photo().save(f"photos/{name}.png")
    do("photos", kinds=("mask",))
    with pytest.raises(CarsegError, match=r"^\S+: the name is too long; rename the photo, or ask"):
        do("photos", kinds=("mask", "background"), background="red", out="both")
    assert f"{name}.png" in files("out")
    assert {"a_mask.png", "b_mask.png"} <= set(files("both")), "the others are done"


class OutOfMemoryError(RuntimeError):
    """As torch has one for GPUs."""


@pytest.mark.parametrize(
    "error", [MemoryError(), OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: no")]
)
def test_a_photo_that_takes_too_much_memory_does_not_stop_the_others(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Red.predict

    def short(model: Red, picture: Picture, **ways: bool) -> NDArray[np.float32]:
        if as_photo(picture).size == (40, 30):
            raise error
        return whole(model, picture, **ways)

    monkeypatch.setattr(Red, "predict", short)
    with pytest.raises(
        CarsegError, match=r"^photos/a\.png: takes more memory than .* lower --jobs$"
    ):
        do("photos")
    assert files() == ["b.png"]


def test_lack_of_memory_in_reading_is_not_taken_for_a_broken_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def short(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", short)
    with pytest.raises(CarsegError, match=r"^photos/a\.png: takes more memory than there is"):
        do("photos/a.png")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Red, "predict", lambda *_, **__: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        do("photos")


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    Path("out").mkdir()
    Path("out/more").write_text("a file where a folder is needed")
    with pytest.raises(CarsegError, match=r"^out/more: a file is in the place of a folder; choose"):
        do("photos", recursive=True)
    assert files() == ["a.png", "b.png", "more"]


def test_nothing_is_replaced_unless_forced() -> None:
    Path("out").mkdir()
    Path("out/b.png").write_bytes(b"dear")
    with pytest.raises(
        CarsegError, match=r"^out/b\.png: exists already; add --force .*, --skip-existing to"
    ):
        do("photos")
    assert files() == ["b.png"]
    assert Path("out/b.png").read_bytes() == b"dear"
    do("photos", force=True)
    assert pixels("out/b.png").shape == (40, 30)


def test_what_another_command_has_made_meanwhile_is_left() -> None:
    class Slow(Red):
        def predict(self, picture: Picture, **options: bool) -> NDArray[np.float32]:
            Path("out").mkdir(exist_ok=True)
            if as_photo(picture).size == (40, 30):  # a's, or b's thread could come after it
                Path("out/a.png").write_text("another's")
            return super().predict(picture, **options)

    with pytest.raises(CarsegError, match=r"^out/a\.png: was made meanwhile, and is left as it is"):
        predict(["photos"], Path("out"), Slow, Kinds([], 0.5, None))
    assert Path("out/a.png").read_text() == "another's"
    assert files() == ["a.png", "b.png"], "the others are done"
    predict(["photos"], Path("out"), Slow, Kinds([], 0.5, None), force=True)
    assert pixels("out/a.png").any()


def test_a_kind_that_another_command_has_made_meanwhile_does_not_stop_the_others() -> None:
    class Slow(Red):
        def predict(self, picture: Picture, **options: bool) -> NDArray[np.float32]:
            Path("out").mkdir(exist_ok=True)
            Path("out/a_mask.png").write_text("another's")
            return super().predict(picture, **options)

    kinds = Kinds(["mask", "overlay"], 0.5, None)
    with pytest.raises(CarsegError, match=r"^out/a_mask\.png: was made meanwhile"):
        predict(["photos/a.png"], Path("out"), Slow, kinds)
    assert files() == ["a_mask.png", "a_overlay.jpg"]
    for path in Path("out").iterdir():
        path.unlink()
    predict(["photos/a.png"], Path("out"), Slow, kinds, skip_existing=True)
    assert files() == ["a_mask.png", "a_overlay.jpg"], "which is what was asked for"
    assert Path("out/a_mask.png").read_text() == "another's"


def test_what_exists_is_left_and_only_the_rest_made(capsys: pytest.CaptureFixture[str]) -> None:
    do("photos/a.png", kinds=("mask", "overlay"))
    Path("out/a_overlay.jpg").write_bytes(b"dear")
    Path("out/a_mask.png").unlink()
    os.symlink("/nowhere/at/all.png", "out/b_mask.png")
    do("photos", kinds=("mask", "overlay"), skip_existing=True)
    assert files() == ["a_mask.png", "a_overlay.jpg", "b_overlay.jpg"]
    assert Path("out/a_overlay.jpg").read_bytes() == b"dear"
    assert Path("out/b_mask.png").is_symlink()
    capsys.readouterr()
    do("photos", kinds=("mask", "overlay"), skip_existing=True)
    assert capsys.readouterr().err == "2 of 2 photos were done already\n"
    photo().save("photos/c.png")
    do("photos", kinds=("mask", "overlay"), skip_existing=True)
    told = "2 of 3 photos were done already\n1 of 1 photos done, in out\n"
    assert capsys.readouterr().err == told
    assert {"c_mask.png", "c_overlay.jpg"} < set(files())


def test_whose_a_numbered_result_is_is_not_guessed() -> None:
    for day in ("1", "2"):
        Path(day).mkdir()
        photo().save(f"{day}/a.png")
    do("1", "2")
    assert files() == ["a_png.png", "a_png_2.png"]
    with pytest.raises(
        CarsegError,
        match=r"^2/a\.png: its results would have the names of those of 1/a\.png, .* rename one ",
    ):
        do("1", "2", skip_existing=True)
    assert files() == ["a_png.png", "a_png_2.png"]


def test_a_photo_that_is_too_large_for_jpeg_is_told_of() -> None:
    Image.new("RGB", (65_501, 1)).save("photos/wide.png")
    said = r"^photos/wide\.png: is too large for what was asked for \(.*\); scale it down$"
    with pytest.raises(CarsegError, match=said):
        do("photos/wide.png", kinds=("overlay",))
    assert files() == []


def test_a_photo_in_the_place_of_a_result_is_told_of_not_skipped() -> None:
    photo().save("photos/a.jpg")
    with pytest.raises(CarsegError, match=r"photos/a\.png: lies among the photos"):
        do("photos/a.jpg", out="photos", skip_existing=True)


def test_of_many_files_that_exist_ten_are_named() -> None:
    for index in range(12):
        photo().save(f"photos/{index:02}.png")
    do("photos")
    with pytest.raises(CarsegError) as error:
        do("photos")
    *named, more = str(error.value).splitlines()
    assert len(named) == 10
    assert more == "and 4 more exist already"
    with pytest.raises(CarsegError) as error:
        do("photos/*.png", out="photos")
    *named, more = str(error.value).splitlines()
    assert len(named) == 10
    assert more == "and 4 more cannot be written"


def test_a_folder_in_the_place_of_a_result_is_told_of_before_anything_is_done() -> None:
    Path("out/b.png").mkdir(parents=True)
    with pytest.raises(CarsegError, match=r"^out/b\.png: is a folder where a file is to be; move"):
        do("photos", force=True)
    Path("photos/c.png").mkdir()
    photo().save("photos/c.jpg")
    with pytest.raises(CarsegError, match=r"^photos/c\.png: is a folder where .* away$"):
        do("photos/c.jpg", out="photos")
    assert files() == []


def test_kinds_that_exist_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    do("photos", kinds=("mask", "cutout"))
    Path("out/a_mask.png").unlink()
    made: list[str] = []
    content = Kinds._content

    def note(kinds: Kinds, kind: str, *given: Any) -> bytes:
        made.append(kind)
        return content(kinds, kind, *given)

    monkeypatch.setattr(Kinds, "_content", note)
    do("photos", kinds=("mask", "cutout"), skip_existing=True)
    assert made == ["mask"]
    assert len(files()) == 4


def test_a_photo_that_may_not_be_read_is_told_of_when_the_others_are_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "a.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(CarsegError, match=r"^photos/a\.png: may not be read .*; change its perm"):
        do("photos")
    assert files() == ["b.png"]


def test_a_photo_is_never_replaced() -> None:
    before = Path("photos/a.png").read_bytes()
    with pytest.raises(CarsegError, match=r"photos/a\.png: is one of the photos; choose another"):
        do("photos/a.png", out="photos", force=True)
    assert Path("photos/a.png").read_bytes() == before


@pytest.mark.parametrize("force", [False, True])
def test_a_photo_that_was_not_given_is_not_replaced_either(force: bool) -> None:
    photo().save("photos/b.jpg")
    os.symlink("../b.jpg", "photos/more/b.jpg")
    before = Path("photos/b.png").read_bytes()
    for given in ("photos/b.jpg", "photos/more/b.jpg"):
        with pytest.raises(CarsegError, match=r"^photos/b\.png: lies among the photos, .*; choose"):
            do(given, out="photos", force=force)
    assert Path("photos/b.png").read_bytes() == before


@pytest.mark.parametrize("force", [False, True])
def test_the_background_is_not_replaced(force: bool) -> None:
    Path("scene").mkdir()
    photo().save("scene/a.jpg")
    before = Path("scene/a.jpg").read_bytes()
    with pytest.raises(CarsegError, match=r"^scene/a\.jpg: is the background; choose another"):
        do("photos/a.png", background="scene/a.jpg", out="scene", force=force)
    assert Path("scene/a.jpg").read_bytes() == before


def test_a_link_to_nothing_is_replaced_only_when_forced() -> None:
    Path("out").mkdir()
    os.symlink("/nowhere/at/all.png", "out/a.png")
    with pytest.raises(
        CarsegError, match=r"^out/a\.png: exists already; add --force .*, --skip-existing to"
    ):
        do("photos/a.png")
    assert Path("out/a.png").is_symlink()
    do("photos/a.png", force=True)
    assert pixels("out/a.png").shape == (30, 40)


def test_a_photo_is_known_by_any_of_its_names() -> None:
    """As where file systems take a.JPG and a.jpg for one."""
    Path("out").mkdir()
    os.link("photos/a.png", "out/a.png")
    before = Path("photos/a.png").read_bytes()
    for force in (False, True):
        with pytest.raises(CarsegError, match=r"^out/a\.png: is one of the photos; choose another"):
            do("photos", force=force)
    assert Path("photos/a.png").read_bytes() == before


@pytest.mark.parametrize(
    "names", [("Car.jpg", "car.png"), ("é.jpg", unicodedata.normalize("NFD", "é.png"))]
)
def test_names_that_are_one_on_some_file_systems_do_not_collide(names: tuple[str, str]) -> None:
    found = [(Path(name), Path(Path(name).stem)) for name in names]
    targets = [job.targets["mask"].stem for job in plan(found, Path("out"), Kinds((), 0.5, None))]
    assert targets == [f"{Path(name).stem}_{Path(name).suffix[1:]}" for name in names]


def test_a_kind_asked_for_twice_is_made_once() -> None:
    do("photos/a.png", kinds=("mask", "mask"))
    assert files() == ["a.png"]


def test_photos_of_one_name_do_not_collide() -> None:
    photo().save("photos/a.jpg")
    Path("other").mkdir()
    photo(20, 10).save("other/a.png")
    do("photos/a.png", "photos/a.jpg", "other/a.png", "photos/a.png")
    assert files() == ["a_jpg.png", "a_png.png", "a_png_2.png"]
    assert pixels("out/a_png_2.png").shape == (10, 20)


def test_a_photo_named_in_several_ways_is_one() -> None:
    Path("link").symlink_to("photos")
    do("photos/a.png", str(Path("photos/a.png").resolve()), "photos/../photos", "link/a.png")
    assert files() == ["a.png", "b.png"]


def test_a_name_made_up_does_not_hit_another() -> None:
    found = [
        (Path("x/a.png"), Path("a")),
        (Path("y/a.jpg"), Path("a")),
        (Path("a_png"), Path("a_png")),
    ]
    targets = [job.targets["mask"] for job in plan(found, Path("out"), Kinds((), 0.5, None))]
    assert len(set(targets)) == 3


def test_names_with_spaces_and_letters_of_all_scripts_are_kept() -> None:
    photo().save("photos/mon auto é 車.v2.png")
    do("photos/mon auto é 車.v2.png")
    assert files() == ["mon auto é 車.v2.png"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.jpg", r"^none\.jpg: there is no such file; check the path"),
        ("none/*.jpg", r"^none/\*\.jpg: there is no such file"),
        ("", "^a path is empty; name a photo, a folder or a pattern"),
        ("empty", r"^empty: holds no photo; name another folder, or add --recursive"),
    ],
)
def test_what_names_no_photo_is_told(path: str, message: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(CarsegError, match=message):
        do(path)
    assert not Path("out").exists()


@pytest.mark.parametrize("background", ["greenish", ""])
def test_a_background_that_is_none_is_told(background: str) -> None:
    with pytest.raises(CarsegError, match=f"--background {background}: neither a colour nor a"):
        do("photos", background=background)


class Standard:
    """Standard input or output as a stream of bytes."""

    def __init__(self, content: bytes = b"") -> None:
        self.buffer = io.BytesIO(content)


def test_a_stream_becomes_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Standard()
    monkeypatch.setattr(sys, "stdin", Standard(Path("photos/a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdout", output)
    do("-", kinds=("cutout",))
    with Image.open(io.BytesIO(output.buffer.getvalue())) as made:
        assert (made.mode, made.size) == ("RGBA", (40, 30))
    assert not Path("out").exists()
    with pytest.raises(CarsegError, match="-: makes one file of one photo"):
        do("-", kinds=("cutout", "mask"))
    monkeypatch.setattr(sys, "stdin", Standard(b"nonsense"))
    with pytest.raises(CarsegError, match=r"^-: cannot be read as an image"):
        do("-")
    long = io.BytesIO()
    photo(70_000, 1).save(long, "PNG")
    monkeypatch.setattr(sys, "stdin", Standard(long.getvalue()))
    with pytest.raises(CarsegError, match=r"^-: is too large for what was asked for .*; scale it"):
        do("-", kinds=("overlay",))
    with pytest.raises(CarsegError, match=r"^-: stands for a stream, and for that alone; name"):
        do("-", "photos/a.png")


def test_a_stream_holds_the_mask_alone(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    weights.save(uneven(U2Net("u2netp"), 3), Path("net.pth"))
    with Path("photos/a.png").open() as given:
        monkeypatch.setattr(sys, "stdin", given)
        run_carseg("predict", "-", "--weights", "net.pth", "--image-size", "64")
    with Image.open(io.BytesIO(capfdbinary.readouterr().out)) as made:
        made.verify()
        assert (made.mode, made.size) == ("L", (40, 30))


def test_a_stream_goes_into_no_folder() -> None:
    with pytest.raises(
        SystemExit, match=r"^carseg: -: goes to standard output; leave out --out, --skip-existing$"
    ):
        run_carseg("predict", "-", "--out", "out", "--skip-existing")


@pytest.mark.parametrize(("closed", "name"), [("stdin", "input"), ("stdout", "output")])
def test_a_stream_that_is_closed_is_told_of(
    closed: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Standard(Path("photos/a.png").read_bytes()))
    monkeypatch.setattr(sys, closed, None)
    with pytest.raises(CarsegError, match=f"^-: there is no standard {name}; name files"):
        do("-")


@pytest.mark.skipif(sys.platform == "win32", reason="signals to one process alone are POSIX")
@pytest.mark.parametrize("presses", [1, 2])
def test_an_interruption_lets_go_of_what_has_not_begun(presses: int) -> None:
    code = """
import time
from pathlib import Path
from carseg.batch import predict
from carseg.errors import run
from carseg.model import Model
from carseg.outputs import Kinds

def look(photos):
    print("looks", flush=True)
    for _ in range(6000):  # a minute at most
        if Path("go").exists():
            break
        time.sleep(0.01)
    return photos[:, :1]

run(lambda: predict(["photos"], Path("out"), lambda: Model(look, 64), Kinds([], 0.5, None), jobs=2))
"""
    for i in range(6):
        photo().save(f"photos/{i}.png")
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        preexec_fn=heed_interruptions,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "looks\n"
    child.send_signal(signal.SIGINT)
    lines = iter(child.stderr.readline, "")
    assert "carseg: interrupted; nothing was left half written\n" in lines
    if presses == 2:
        child.send_signal(signal.SIGINT)
    else:
        Path("go").touch()
    output, errors = child.communicate(timeout=20)
    # A shell calls both 130.
    assert (child.returncode, errors) == (130 if presses == 1 else -signal.SIGINT, "")
    assert output in ("", "looks\n"), "the photo that was in work, waiting for its turn"
    assert not Path("out").exists()


def test_photos_of_a_folder_are_looked_at_side_by_side() -> None:
    meeting = Barrier(2, timeout=20)

    def look(photos: Tensor) -> Tensor:
        meeting.wait()  # breaks if the other photo is not looked at meanwhile
        return torch.full((len(photos), 1, 64, 64), 0.2)  # of a car there might be a second look

    model = Model(look, 64, lambda jobs: nullcontext(look))
    predict(["photos"], Path("out"), lambda: model, Kinds([], 0.5, None), jobs=2)
    assert not any(pixels(f"out/{name}").any() for name in files("out"))
    assert files("out") == ["a.png", "b.png"]


def test_hidden_files_and_folders_count_as_no_photos() -> None:
    assert [path.name for path, _ in list_photos(["photos"], recursive=False)] == ["a.png", "b.png"]
    Path("photos/dir.png").mkdir()
    Path("photos/.thumbs").mkdir()
    photo().save("photos/.thumbs/x.png")
    assert len(list_photos(["photos"], recursive=True)) == 3


def test_the_command_line_predicts_with_trained_weights() -> None:
    net = uneven(U2Net("u2netp"), 3)
    weights.save(net, Path("net.pth"))
    options = ("--weights", "net.pth", "--image-size", "64", "--out", "made")
    run_carseg("predict", "photos", *options, "--mask", "--cutout", "--jobs", "1")
    assert files("made") == ["a_cutout.png", "a_mask.png", "b_cutout.png", "b_mask.png"]
    found = Model.of(net, 64).predict("photos/a.png")
    assert np.array_equal(pixels("made/a_mask.png") > 0, found >= 0.5)
    with pytest.raises(SystemExit) as stop:
        run_carseg("predict", "photos", *options, "--mask", "--cutout")
    assert "carseg: made/a_mask.png: exists already" in str(stop.value)


def test_a_models_own_threshold_and_clean_up_are_those_of_its_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Red):
        def __init__(self) -> None:
            super().__init__()
            self.threshold, self.cleanup = 0.3, True  # a dark part of the car has 0.4

    speck = photo()
    speck.putpixel((39, 29), (255, 20, 30))
    speck.save("photos/a.png")
    expected = np.zeros((30, 40), np.uint8)
    expected[5:20, 4:30] = 255
    predict(["photos/a.png"], Path("out"), Own, Kinds([]))
    assert np.array_equal(pixels("out/a.png"), expected)
    out = Standard()
    monkeypatch.setattr(sys, "stdin", Standard(Path("photos/a.png").read_bytes()))
    monkeypatch.setattr(sys, "stdout", out)
    predict(["-"], Path("out"), Own, Kinds([]))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(out.buffer.getvalue()))), expected)
    predict(["photos/a.png"], Path("given"), Own, Kinds([], 0.5, None, False))
    assert pixels("given/a.png")[29, 39] == 255 > pixels("given/a.png")[10, 5]


def test_options_left_out_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def take(_: object, out: Path, load: Callable[[], Model], kinds: Kinds, **__: object) -> None:
        model = load()
        kinds.settle(model.threshold, model.cleanup)
        given.extend((model.size, kinds.threshold, kinds.cleanup, str(out)))

    monkeypatch.setattr("carseg.batch.predict", take)
    weights.save(U2Net("u2netp"), Path("u2net_segmentation_dice_loss.pth"))
    run_carseg("predict", "photos")
    assert given == [320, 0.5, False, "predicted"]
    Path("params.yaml").write_text("image_size: 256\nthreshold: 0.4\ncleanup: true\n")
    given.clear()
    run_carseg("predict", "photos")
    assert given == [256, 0.4, True, "predicted"]
    given.clear()
    run_carseg("predict", "photos", "--image-size", "64", "--threshold", "0.6", "--no-cleanup")
    assert given == [64, 0.6, False, "predicted"]
    Path("params.yaml").write_text("threshold: 2\n")
    with pytest.raises(SystemExit, match=r"params\.yaml: threshold is 2"):
        run_carseg("predict", "photos")


def test_without_any_training_the_published_net_predicts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[object] = []
    monkeypatch.setattr(
        "carseg.model.untrained", lambda size, device: given.extend((size, device)) or Red()
    )
    for words, expected in (
        ((), [None, "auto"]),
        (("--image-size", "64", "--device", "cpu", "--force"), [64, "cpu"]),
    ):
        given.clear()
        run_carseg("predict", "photos", "--untrained", "--out", "made", *words)
        assert given == expected
        assert files("made") == ["a.png", "b.png"]
    with pytest.raises(SystemExit):
        run_carseg("predict", "photos", "--untrained", "--weights", "net.pth")
    assert "not allowed with argument --untrained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--d4", "--force", "-r"], {"d4": True, "recursive": True, "force": True}),
        (["--closer", "--jobs", "3"], {"closer": True, "jobs": 3}),
        (["--skip-existing"], {"skip_existing": True}),
        (["--device", "cpu", "--background", "white"], {"device": "cpu", "names": ["background"]}),
    ],
)
def test_options_reach_what_they_are_for(
    words: list[str], expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(
        "carseg.model.load", lambda path, size, device: given.update(device=device) or Red()
    )
    monkeypatch.setattr(
        "carseg.batch.predict",
        lambda paths, out, load, kinds, **options: (
            load() and given.update(options, names=[*kinds.names])
        ),
    )
    Path("net.pth").touch()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run_carseg("predict", "photos", "--weights", "net.pth", *words)
    assert not torch.backends.cudnn.allow_tf32, "masks are those that were scored"
    left_out = dict.fromkeys(("d4", "closer", "recursive", "force", "skip_existing"), False)
    assert given == {**left_out, "jobs": None, "device": "auto", "names": ["mask"], **expected}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gone.jpg",), "gone.jpg: there is no such file"),
        (("photos", "--background", "greenish"), "--background greenish: neither"),
        (("photos",), "made/a.png: exists already"),
        (("-", "--mask", "--overlay"), "-: makes one file of one photo"),
    ],
)
def test_what_cannot_be_done_is_told_before_weights_are_fetched(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("made").mkdir()
    Path("made/a.png").touch()
    monkeypatch.setattr("carseg.model.untrained", pytest.fail)
    out = () if words[0] == "-" else ("--out", "made")
    with pytest.raises(SystemExit, match=f"^carseg: {said}"):
        run_carseg("predict", *words, "--untrained", *out)


def test_options_of_an_export_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr("carseg.export.export", lambda *words: given.extend(words) or [])
    Path("net.pth").touch()
    words = ["--format", "onnx", "--batch", "2", "--force", "--int8", "photos", "--out", "made"]
    run_carseg("export", "--weights", "net.pth", *words)
    photos = [Path("photos/a.png"), Path("photos/b.png"), Path("photos/more/c.png")]
    assert given == [Path("net.pth"), Path("made"), ["onnx"], 320, 2, True, photos]
    given.clear()
    run_carseg("export", "--weights", "net.pth", "--image-size", "64")
    assert given[3] == 64


def test_a_stream_is_looked_at_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Red()
    for d4, closer in ((True, False), (False, True)):
        monkeypatch.setattr(sys, "stdin", Standard(Path("photos/a.png").read_bytes()))
        monkeypatch.setattr(sys, "stdout", Standard())
        predict(["-"], Path("out"), lambda: model, Kinds([], 0.5, None), d4=d4, closer=closer)
    assert model.asked == [(True, False), (False, True)]


def test_settings_are_those_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(
        "carseg.batch.predict",
        lambda paths, out, load, *_, **__: given.extend((load().size, load().threshold)),
    )
    monkeypatch.setattr(
        "carseg.export.export",
        lambda source, out, formats, size, *_: given.append(size) or [],
    )
    Path("params.yaml").write_text("lr: 0.1\n")  # of another project
    for name in "AB":
        weights.save(U2Net("u2netp"), Path(name, "net.pth"))
    Path("A/params.yaml").write_text("image_size: 64\nthreshold: 0.4\n")
    for name, expected in (
        ("A/net.pth", [64, 0.4]),
        ("B/net.pth", [320, 0.5]),
    ):
        given.clear()
        run_carseg("predict", "photos", "--weights", name)
        assert given == expected, name
    given.clear()
    run_carseg("export", "--weights", "A/net.pth")
    assert given == [64]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--threshold", "1.5"), "--threshold 1.5: give a number from 0 to 1"),
        (("--jobs", "0"), "--jobs 0: give a number from 1 to 64"),
        (("--image-size", "8"), "--image-size 8: give a number from 32 to 4096"),
        (
            (),
            r"_dice_loss\.pth: there is no such file; run dvc repro in the project's folder, or "
            r"name the weights with --weights \(carseg predict --untrained needs none\)$",
        ),
        (("--weights", "none/model.onnx"), "model.onnx: there is no such file; run carseg export"),
        (("--out", ""), "--out: names nothing; give a folder"),
        (("--weights", ""), "--weights: names nothing; give a file"),
    ],
)
def test_wrong_options_are_one_line(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        run_carseg("predict", "photos", *arguments)
