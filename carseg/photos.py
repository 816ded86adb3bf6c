"""Photos and masks: files in, images and square arrays out."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from carseg.errors import CarsegError

HEIC = {".heic", ".heif", ".hif"}  # Pillow reads it with a plugin
RAW = {  # of cameras
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
}  # fmt: skip
WITH_ALPHA = {"LA", "PA", "RGBA", "RGBa"}
# What tells the transparent colour, by mode.
KEYS: dict[str, tuple[type, ...]] = {"1": (int,), "L": (int,), "P": (int, bytes), "RGB": (tuple,)}
EXIF = (b"Exif", b"II", b"MM")  # what it begins with
# Where a photo may tell how it is to be turned.
TAGGED = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
EXIF_TURNS = {  # by the EXIF tag Orientation, but for 1, which stands
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_photo(path: Path) -> Image.Image:
    """Read a photo as RGB, turned upright where its EXIF tag says how the camera was held.

    Raises:
        CarsegError: the file is missing, broken or not an image.
    """
    with _opened(path) as image:
        return as_rgb(image)


def read_mask(path: Path) -> Image.Image:
    """Read a mask as mode "L" with 0 (background) and 255 (car); grey counts as car from 128.

    Raises:
        CarsegError: the file is missing, broken or not an image.
    """
    return read_levels(path).point(lambda value: 255 if value >= 128 else 0)


def read_levels(path: Path) -> Image.Image:
    """Read a mask as it was saved, in grey, mode "L"; what is transparent in it is black.

    Raises:
        CarsegError: the file is missing, broken or not an image.
    """
    with _opened(path) as image:
        return on_ground(eight_bits(image), "black").convert("L")


def read_truth(path: Path) -> NDArray[np.bool_]:
    """Read a mask as an array, (H, W), True where there is car.

    Raises:
        CarsegError: as `read_mask`.
    """
    return np.asarray(read_mask(path)) > 0


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale levels of 16 bits, and floating-point ones from 0 to 1, to 8 bits; Pillow would not."""
    if image.mode == "F" and np.asarray(image).max() <= 1:
        return Image.fromarray((np.asarray(image).clip(0, 1) * 255 + 0.5).astype(np.uint8))
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image, np.int64)
    reduced = Image.fromarray((levels.clip(0, 65535) >> 8).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):  # one of 65536 levels
        reduced.putalpha(Image.fromarray(levels != key).convert("L"))
    return reduced


def on_ground(image: Image.Image, colour: str) -> Image.Image:
    """Lay an image on a colour, as RGBA, if it may be transparent; else return it itself."""
    key = image.info.get("transparency")  # what else is called so is none
    if image.mode not in WITH_ALPHA and not isinstance(key, KEYS.get(image.mode, ())):
        return image
    ground = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(ground, image.convert("RGBA"))


def drop_text(image: Image.Image) -> None:
    """Remove PNG text under names that Pillow uses for metadata, and what is malformed of them."""
    for name, kinds in (("icc_profile", bytes), ("transparency", (int, bytes, tuple))):
        if name in image.info and not isinstance(image.info[name], kinds):
            del image.info[name]
    exif = image.info.get("exif", EXIF[0])
    if not isinstance(exif, bytes) or not exif.startswith(EXIF):
        del image.info["exif"]


def turned_by_tag(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF tag; return it itself, not a copy, if it already is.

    Its other EXIF data are kept; a copy goes without those that are malformed.
    """
    orientation = None
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return ImageOps.exif_transpose(image) if orientation in EXIF_TURNS else image
    except MemoryError:
        raise
    except Exception:  # whatever Pillow raises when it cannot read them, or write them anew
        # Not itself, which the caller may go on with.
        turned = image.copy() if orientation is None else image.transpose(EXIF_TURNS[orientation])
        for name in TAGGED:
            turned.info.pop(name, None)
        return turned


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Yield an image file's upright image; what goes wrong with it names the file."""
    try:
        content = path.read_bytes()
        with blaming(path, content):
            yield decode(content)
    except FileNotFoundError as error:
        raise CarsegError(f"{path}: there is no such file; put it back") from error
    except PermissionError as error:
        raise CarsegError(f"{path}: may not be read; change its permissions") from error
    except OSError as error:
        raise CarsegError(f"{path}: cannot be read ({error.strerror}); save it anew") from error
    except MemoryError as error:
        raise CarsegError(f"{path}: takes more memory than there is; scale it down") from error


class RawFile(Exception):
    """The file is a camera's raw one."""


def decode(content: bytes) -> Image.Image:
    """Decode an image file, turned upright by its EXIF tag.

    Raises:
        Exception: whatever Pillow raises, which has no common base; see `blaming`.
    """
    with Image.open(io.BytesIO(content)) as image:
        if _is_raw(image):
            raise RawFile
        image.load()
        drop_text(image)
        return turned_by_tag(image)


def _is_raw(image: Image.Image) -> bool:
    """Return whether a TIFF is one, by its tags: a file's name may not tell."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return ExifTags.Base.DNGVersion in tags or tags.get(ExifTags.Base.NewSubfileType) == 1


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, before white where it is transparent.

    One already so is not copied.
    """
    image = on_ground(eight_bits(image), "white")
    return image if image.mode == "RGB" else image.convert("RGB")


@contextmanager
def blaming(source: Path, content: bytes) -> Iterator[None]:
    """Let errors in decoding an image file's content name the file, and say what to do.

    Raises:
        CarsegError: the block failed, or the file is a camera's raw one, of which Pillow would read
            a preview.
        MemoryError: of which the file is not to blame.
    """
    try:
        if source.suffix.lower() in RAW:
            raise RawFile
        yield
    except MemoryError:
        raise
    except RawFile as error:
        raise CarsegError(
            f"{source}: is a camera's raw file, of which a preview at most can be read; convert it "
            "to JPEG or leave it out"
        ) from error
    except Image.DecompressionBombError as error:
        raise CarsegError(f"{source}: has too many pixels ({error}); scale it down") from error
    except UnidentifiedImageError as error:
        why = "of no known format; save it anew"
        if not content:
            why = "empty; save it anew"
        elif source.suffix.lower() in HEIC:
            why = "of a kind that Pillow does not read; convert it to JPEG (docs/photos.md)"
        raise CarsegError(
            f"{source}: cannot be read as an image, it is {why} or leave it out"
        ) from error
    except Exception as error:  # Pillow has no common base for what a broken file may raise
        why = " ".join(str(error).split())
        raise CarsegError(
            f"{source}: cannot be read as an image ({why}); save it anew or leave it out"
        ) from error


def squared_photo(photo: Image.Image, size: int) -> NDArray[np.uint8]:
    """Stretch a photo to a square, (size, size, 3), uint8; Lanczos, as rembg does."""
    return np.asarray(photo.resize((size, size), Image.Resampling.LANCZOS))


def squared_mask(mask: Image.Image, size: int) -> NDArray[np.uint8]:
    """Stretch a mask to a square, (size, size), uint8: the share of car in each pixel, 0…255.

    Edges stay soft: thresholded at 320×320 a mask cannot come back better than IoU 0.994,
    averaged over areas 0.999.
    """
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX))
