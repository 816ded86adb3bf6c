"""Photos and masks as people save them."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ellipse, oriented
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from carseg.errors import CarsegError
from carseg.inputs import read
from carseg.photos import (
    as_rgb,
    eight_bits,
    read_levels,
    read_mask,
    read_photo,
    read_truth,
    squared_mask,
    squared_photo,
    turned_by_tag,
)

CAR = ellipse(40, 64, seed=3)
UPRIGHT = np.zeros((6, 4, 3), np.uint8)
UPRIGHT[0, 0], UPRIGHT[0, 3], UPRIGHT[5, 0] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
# As the EXIF standard numbers them: how the sensor's rows and columns lie in the picture seen.
AS_SEEN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def grey(mask: NDArray[np.bool_]) -> Image.Image:
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8))


def coloured(mask: Image.Image) -> Image.Image:
    """A palette in which the indices say nothing and the colours everything."""
    image = mask.point(lambda value: 1 if value else 2).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255, 10, 10, 10])
    return image


def see_through(mask: Image.Image) -> Image.Image:
    image = mask.convert("RGBA")
    image.putalpha(255)
    return image


def deep(mask: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(mask).astype(np.uint16) * 257)


MODES = {
    "1": lambda mask: mask.convert("1"),
    "L": lambda mask: mask,
    "P": coloured,
    "RGB": lambda mask: mask.convert("RGB"),
    "RGBA": see_through,
    "LA": lambda mask: mask.convert("LA"),
    "I;16": deep,
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mask_of_any_mode_is_black_and_white(mode: str, tmp_path: Path) -> None:
    image = MODES[mode](grey(CAR))
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    mask = read_mask(tmp_path / "a.png")
    assert mask.mode == "L"
    assert np.array_equal(np.asarray(mask), np.where(CAR, 255, 0))


def test_grey_counts_as_car_from_128(tmp_path: Path) -> None:
    values = np.array([[0, 1, 127, 128, 129, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_mask(tmp_path / "a.png")).tolist() == [[0, 0, 0, 255, 255, 255]]


def test_the_truth_is_where_the_car_is(tmp_path: Path) -> None:
    grey(CAR).save(tmp_path / "a.png")
    truth = read_truth(tmp_path / "a.png")
    assert truth.dtype == np.bool_
    assert np.array_equal(truth, CAR)


def test_what_is_transparent_in_a_mask_is_no_car(tmp_path: Path) -> None:
    white = Image.new("RGBA", (CAR.shape[1], CAR.shape[0]), "white")
    white.putalpha(grey(CAR))
    white.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_mask(tmp_path / "a.png")) > 0, CAR)


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32767, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.asarray(read_levels(tmp_path / "a.png")).tolist() == [[0, 0, 1, 127, 128, 255]]
    assert np.asarray(read_photo(tmp_path / "a.png"))[..., 1].tolist() == [[0, 0, 1, 127, 128, 255]]


@pytest.mark.parametrize("most", [1, 255])
def test_floating_point_levels_may_go_to_1_or_255(most: int) -> None:
    levels = np.linspace(0, most, 256, dtype=np.float32)[None]
    found = np.asarray(as_rgb(Image.fromarray(levels)))[0]
    assert np.abs(found - np.arange(256)[:, None]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "CMYK", "YCbCr", "P"])
def test_colours_stay_what_they_are_in_every_mode(mode: str) -> None:
    given = Image.new("RGB", (2, 1), (200, 40, 90))
    given.putpixel((1, 0), (10, 250, 120))
    found = np.asarray(as_rgb(given.convert(mode)), int)
    # CMYK as Pillow makes it has no black; a palette has the nearest of its colours.
    assert np.abs(found - np.asarray(given)).max() <= (40 if mode == "P" else 2)


def test_what_is_beyond_16_bits_is_black_or_white() -> None:
    values = np.array([[-(2**31), -1, 0, 65535, 65536, 70000, 2**31 - 1]], np.int32)
    assert np.asarray(eight_bits(Image.fromarray(values))).tolist() == [[0, 0, 0] + [255] * 4]


def test_one_transparent_level_of_16_bits_is_no_car(tmp_path: Path) -> None:
    values = np.array([[60000, 60001, 0, 65535]], np.uint16)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    whole = content.getvalue()
    # Pillow reads the chunk that says which level is transparent, but does not write it.
    said = b"tRNS" + (60000).to_bytes(2, "big")
    chunk = b"\0\0\0\2" + said + zlib.crc32(said).to_bytes(4, "big")
    at = whole.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(whole[:at] + chunk + whole[at:])
    assert np.asarray(read_levels(tmp_path / "a.png")).tolist() == [[0, 234, 0, 255]]


@pytest.mark.parametrize("orientation", AS_SEEN)
def test_photos_and_masks_are_turned_as_they_are_seen(orientation: int, tmp_path: Path) -> None:
    exif = oriented(orientation)
    stored = UPRIGHT.repeat(8, 0).repeat(8, 1)
    seen = AS_SEEN[orientation](stored)
    Image.fromarray(stored).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    found = np.asarray(read_photo(tmp_path / "a.jpg"))
    assert found.shape == seen.shape
    assert np.abs(found.astype(int) - seen).mean() < 8
    Image.fromarray(stored[..., 0]).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(np.asarray(read_mask(tmp_path / "a.png")), seen[..., 0])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_photo_of_any_mode_is_rgb(mode: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 6), (200, 200, 200)).convert(mode).save(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg")
    assert (photo.mode, photo.size) == ("RGB", (9, 6))
    assert np.abs(np.asarray(photo).astype(int) - 200).max() <= 3


def jpeg() -> bytes:
    memory = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(memory, "JPEG")
    return memory.getvalue()


def png() -> bytes:
    memory = io.BytesIO()
    grey(CAR).save(memory, "PNG")
    return memory.getvalue()


BROKEN = {
    "truncated photo": jpeg()[: len(jpeg()) * 2 // 3],
    "truncated mask": png()[: len(png()) // 2],
    "flipped bits": png()[:60] + bytes(byte ^ 255 for byte in png()[60:90]) + png()[90:],
    "nothing": b"",
    "a page": b"<html>not found</html>",
    "only a start": jpeg()[:20],
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("read", [read_photo, read_mask])
def test_a_broken_file_is_one_line_with_its_name(
    content: bytes, read: Callable[[Path], Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(CarsegError, match=r"broken\.jpg: cannot be read as an image") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("content", "why"), [(b"", "empty"), (b"x", "of no known format")])
def test_an_empty_file_is_told_from_another_one(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(CarsegError) as caught:
        read_photo(tmp_path / "a.jpg")
    assert str(caught.value) == (
        f"{tmp_path / 'a.jpg'}: cannot be read as an image, it is {why}; save it anew or "
        "leave it out"
    )


def test_what_pillow_says_in_lines_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(_: Path) -> Image.Image:
        raise ValueError("a chunk\n\tis  broken\r\n")

    (tmp_path / "a.jpg").write_bytes(b"broken")
    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(CarsegError) as caught:
        read_photo(tmp_path / "a.jpg")
    assert str(caught.value) == (
        f"{tmp_path / 'a.jpg'}: cannot be read as an image (a chunk is broken); save it anew "
        "or leave it out"
    )


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CarsegError, match=r"gone\.jpg: there is no such file"):
        read_photo(tmp_path / "gone.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(CarsegError, match=r"folder\.jpg: cannot be read"):
        read_photo(tmp_path / "folder.jpg")


def test_a_photo_far_too_big_is_refused_unread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (20, 11)).save(tmp_path / "bomb.jpg")
    with pytest.raises(CarsegError, match=r"bomb\.jpg: has too many pixels .*; scale it down$"):
        read_photo(tmp_path / "bomb.jpg")


def test_odd_exif_data_beside_the_orientation_is_no_bug(tmp_path: Path) -> None:
    # Some cameras store the width as bytes; Pillow stumbles when it takes the orientation out.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x0100, 7, 4, b"30")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_photo(tmp_path / "a.jpg").size == (20, 30)


@pytest.mark.parametrize("orientation", AS_SEEN)
def test_malformed_exif_data_do_not_keep_a_photo_from_being_turned(orientation: int) -> None:
    # A resolution as text: Pillow cannot write that anew.
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack("<HHI4s", 0x011A, 2, 4, b"300")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    stored = UPRIGHT.repeat(8, 0).repeat(8, 1)
    memory = io.BytesIO()
    Image.fromarray(stored).save(memory, "PNG", exif=exif)
    with Image.open(memory) as image:
        image.load()
        turned = turned_by_tag(image)
    assert np.array_equal(np.asarray(turned), AS_SEEN[orientation](stored))
    assert turned_by_tag(turned) is turned, "it is not turned again"


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0" + bytes(8), b"Exif\0\0" + b"rubbish", b"Exif\0\0II*\0" + b"\xff" * 4]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_exif_data_that_cannot_be_read_at_all_do_not_keep_a_photo_from_it(
    exif: bytes, name: str, tmp_path: Path
) -> None:
    """As what removes private data from photos leaves them."""
    Image.new("RGB", (30, 20), "red").save(tmp_path / name, exif=exif, dpi=(72, 72))
    assert read_photo(tmp_path / name).size == (30, 20)
    read(tmp_path.joinpath(name).read_bytes(), tmp_path / name).save(tmp_path / "again.jpg")


def test_a_text_by_the_name_of_metadata_is_none(tmp_path: Path) -> None:
    text = PngInfo()
    for name in ("exif", "xmp", "Raw profile type exif"):
        text.add_itxt(name, "of mine")
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png", pnginfo=text)
    assert read_photo(tmp_path / "a.png").size == (30, 20)


def test_the_preview_in_raw_data_is_no_photo(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a.NEF", "TIFF")
    with pytest.raises(CarsegError, match=r"a\.NEF: is a camera's raw file, .* to JPEG or leave"):
        read_photo(tmp_path / "a.NEF")


def test_a_squared_photo_is_stretched_whole() -> None:
    photo = np.zeros((40, 80, 3), np.uint8)
    photo[:, 40:] = (250, 120, 10)
    square = squared_photo(Image.fromarray(photo), 32)
    assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)
    assert np.array_equal(square[:, :12], np.zeros((32, 12, 3), np.uint8))
    assert np.array_equal(square[:, 20:], np.full((32, 12, 3), (250, 120, 10), np.uint8))


def test_a_squared_mask_holds_the_share_of_car() -> None:
    # Three columns of a 6×12 mask, squared to 3: pixels of 2×4 that hold 0, 3/4 and 4/4 of car.
    car = np.zeros((6, 12), bool)
    car[:, 5:] = True
    square = squared_mask(grey(car), 3)
    assert square.dtype == np.uint8
    assert np.array_equal(square, np.tile(np.array([0, 191, 255], np.uint8), (3, 1)))


@pytest.mark.parametrize("size", [32, 64, 96])
def test_a_squared_mask_keeps_the_cars_area(size: int) -> None:
    square = squared_mask(grey(CAR), size)
    assert square.shape == (size, size)
    assert square.mean() / 255 == pytest.approx(CAR.mean(), abs=0.004)


def test_lack_of_memory_is_not_taken_for_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def fail(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(CarsegError, match=r"a\.png: takes more memory than there is; scale it"):
        read_photo(tmp_path / "a.png")
