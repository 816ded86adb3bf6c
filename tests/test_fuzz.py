"""A thousand damaged files through the checks: refused in a line, or good enough to train on."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import LONG, SHORT, ellipse, oriented
from PIL import Image

from carseg.data import Samples
from carseg.dataset import snapshot
from carseg.errors import CarsegError
from carseg.pairs import find_pairs
from carseg.squares import Squares

FILES = 1000
CAR = ellipse(SHORT, LONG, seed=1)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format, **options)
    return content.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (SHORT, LONG, 3), dtype=np.uint8)
GREY = Image.fromarray(np.where(CAR, 255, 0).astype(np.uint8))
EXIF = oriented(1)
PHOTOS = [
    encoded(Image.fromarray(PIXELS), "JPEG", quality=50),
    encoded(Image.fromarray(PIXELS), "JPEG", progressive=True, exif=EXIF),
    encoded(Image.fromarray(PIXELS).convert("L"), "JPEG"),
    encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"),
]
MASKS = [
    encoded(GREY, "PNG"),
    encoded(GREY.convert("1"), "PNG"),
    encoded(GREY.convert("P"), "PNG", exif=EXIF),
    encoded(GREY.convert("RGBA"), "PNG"),
    encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"),
]


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bits, overwrite, cut, repeat, insert or drop a part; half of the time near the start."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        reach = min(len(data), 200) if random.random() < 0.5 else len(data)
        at = int(random.integers(reach))
        length = int(random.integers(1, 40))
        match random.integers(6):
            case 0:
                data[at] ^= 1 << int(random.integers(8))
            case 1:
                data[at : at + length] = random.bytes(length)
            case 2:
                del data[max(at, 1) :]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = random.bytes(length)
            case _:
                del data[at : at + length]
        if not data:
            break
    return bytes(data)


def checked() -> str:
    """Check the pairs here; give what is said against them."""
    try:
        snapshot(Path(), Path("dataset"))
    except CarsegError as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings(r"ignore:::PIL\.")  # as for users: see `carseg.errors.run`
def test_damaged_files_are_refused_in_a_line_or_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("Image", "Mask"):
        Path(folder).mkdir()
    photo, mask = Path("Image/a.jpg"), Path("Mask/a.png")
    refused = trained = 0
    for i in range(FILES):
        random = np.random.default_rng(i)
        good_photo, good_mask = PHOTOS[i // 2 % len(PHOTOS)], MASKS[i // 2 % len(MASKS)]
        photo.write_bytes(damaged(good_photo, random) if i % 2 else good_photo)
        mask.write_bytes(good_mask if i % 2 else damaged(good_mask, random))
        began = time.process_time()
        refusal = checked()
        if refusal:
            assert len(refusal.splitlines()) == 1, (i, refusal)
            assert str(photo if i % 2 else mask) in refusal
            refused += 1
        else:
            pairs = find_pairs(Path("dataset/Image"), Path("dataset/Mask"))
            squared, share = Samples(Squares(pairs, 64, Path()))[0, 0]
            assert bool(squared.isfinite().all())
            assert share.min() >= 0
            assert share.max() <= 1
            trained += 1
        assert time.process_time() - began < 10, f"file {i} took too long"
    assert refused + trained == FILES
    assert min(refused, trained) > FILES / 10, (refused, trained)
