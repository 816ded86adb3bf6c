"""`carseg predict`: masks, cut-outs and overlays of many photos."""

from __future__ import annotations

import errno
import glob
import io
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps
from tqdm import tqdm

from carseg.ahead import ahead
from carseg.errors import CarsegError, is_lack_of_memory
from carseg.files import check_writable, write_bytes
from carseg.model import Model, as_photo, turned_by_tag
from carseg.overlay import TRUE_POSITIVE
from carseg.photos import HEIC, drop_text
from carseg.piece import one_piece

ENDINGS = {"mask": ".png", "cutout": ".png", "overlay": ".jpg", "background": ".jpg"}
STREAM = Path("-")
RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"}  # of cameras
# What Pillow opens without being able to give its pixels, or by another program alone.
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
EXIF_MARK = b"Exif\0\0"
EXIF_MOST = 65533  # bytes of it that a JPEG holds
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of a disk that takes no more
TINT = 0.45  # strength of an overlay's colour


class Job(NamedTuple):
    """A photo and the files that are made of it, by kind."""

    source: Path
    targets: dict[str, Path]


class Kinds:
    """What is made of a photo and its probability map.

    Attributes:
        names: of the kinds wanted: mask, cutout, overlay, background.
        scenery: the file of the background, where it is a picture.
    """

    def __init__(
        self,
        names: Sequence[str],
        threshold: float,
        background: str | None,
        cleanup: bool = False,
    ) -> None:
        """Read the background, too.

        Args:
            names: of the kinds wanted; none: mask.
            threshold: probability from which a pixel is car.
            background: a colour, as in CSS, or an image file.
            cleanup: keep only the largest piece of car, and fill its holes.

        Raises:
            CarsegError: the background is neither.
        """
        wanted = [*names, *(["background"] if background is not None else [])] or ["mask"]
        self.names = list(dict.fromkeys(wanted))
        self._threshold = threshold
        self._cleanup = cleanup
        self._scene: Image.Image | tuple[int, ...] = (0, 0, 0)
        self.scenery: Path | None = None
        if background and Path(background).is_file():
            self.scenery = Path(background)
            self._scene = as_photo(background)
        elif background is not None:
            try:
                self._scene = ImageColor.getrgb(background)[:3]
            except ValueError as error:
                raise CarsegError(
                    f"--background {background}: neither a colour nor a file; try white or #1e90ff"
                ) from error

    def make(self, photo: Image.Image, found: NDArray[np.float32]) -> Iterator[tuple[str, bytes]]:
        """Give each kind wanted, and its file's content.

        Args:
            photo: RGB, W×H; its EXIF data and colour profile are carried over.
            found: (H, W), probability of being car, 0…1.
        """
        if self._cleanup:
            found = one_piece(found, self._threshold)
        for kind in self.names:
            yield kind, self._content(kind, photo, found)

    def _content(self, kind: str, photo: Image.Image, found: NDArray[np.float32]) -> bytes:
        if kind == "mask":
            picture = self._car(found)
        elif kind == "cutout":
            picture = photo.copy()
            picture.putalpha(_alpha(found))
        elif kind == "overlay":
            tinted = Image.blend(photo, Image.new("RGB", photo.size, TRUE_POSITIVE), TINT)
            picture = Image.composite(tinted, photo, self._car(found))
        else:
            scene = (
                ImageOps.fit(self._scene, photo.size)
                if isinstance(self._scene, Image.Image)
                else Image.new("RGB", photo.size, self._scene)
            )
            picture = Image.composite(photo, scene, _alpha(found))
        kept = {} if kind == "mask" else {
            key: photo.info[key] for key in ("exif", "icc_profile") if photo.info.get(key)
        }  # fmt: skip
        content = io.BytesIO()
        if ENDINGS[kind] == ".png":
            picture.save(content, "PNG", compress_level=3, **kept)
        else:
            if len(kept.get("exif", b"")) > EXIF_MOST:
                del kept["exif"]
            picture.save(content, "JPEG", quality=92, **kept)
        return content.getvalue()

    def _car(self, found: NDArray[np.float32]) -> Image.Image:
        return Image.fromarray((found >= self._threshold).view(np.uint8) * np.uint8(255))


def _alpha(found: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((found * 255).round().astype(np.uint8))


def predict(
    paths: Sequence[str],
    out: Path,
    model: Model,
    kinds: Kinds,
    *,
    d4: bool = False,
    closer: bool = False,
    recursive: bool = False,
    force: bool = False,
    jobs: int | None = None,
) -> None:
    """Write what is wanted of every photo; one that cannot be read does not stop the others.

    Args:
        paths: files, folders, patterns, or "-" alone: standard input to standard output.
        out: the folder to write to.
        model: what to predict with.
        kinds: what to make of each photo.
        d4: as in `Model.predict`.
        closer: likewise.
        recursive: look into folders in folders, too.
        force: replace files that exist, but none that lie where photos do.
        jobs: photos in work at once, each in a thread; None: as many as suit the model.

    Raises:
        CarsegError: nothing to do, a file that must not be replaced (nothing is written then), or
            photos that could not be done, once all others are.
    """
    if [*paths] == [str(STREAM)]:
        if len(kinds.names) > 1:
            raise CarsegError("-: makes one file of one photo; ask for one kind alone")
        for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
            if stream is None:  # closed by who started this
                raise CarsegError(f"-: there is no standard {name}; name files instead")
        photo = read(sys.stdin.buffer.read(), STREAM)
        for _, content in kinds.make(photo, model.predict(photo, d4, closer)):
            sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    listed = plan(find(paths, recursive, out), out, kinds)
    for path in map(Path, paths):
        if path.is_dir() and out.is_dir() and path.samefile(out):
            raise CarsegError(f"{out}: is the photos' own folder; choose another --out")
    refuse_losses(listed, force, kinds.scenery)
    check_writable(out)  # now, not when hours have been computed
    failed: list[str] = []
    undone = len(listed)
    stopped = Event()

    def do(job: Job) -> None:
        photo = read(job.source.read_bytes(), job.source)
        found = model.predict(photo, d4, closer)
        for kind, content in kinds.make(photo, found):
            if stopped.is_set():  # and told that nothing is half written
                return
            write_bytes(job.targets[kind], content)

    jobs = min(jobs or model.jobs, len(listed))
    results = ahead(do, tqdm(listed, unit="photo", disable=None), jobs)
    with model.among(jobs), ended(results, stopped):
        for job, done in results:
            try:
                done.result()
                undone -= 1
            except (CarsegError, OSError, MemoryError, RuntimeError) as error:
                failed.append(plain(error, job))
                if isinstance(error, OSError) and error.errno in FULL:
                    break  # each photo after it would say the same
    print(f"{len(listed) - undone} of {len(listed)} photos done, in {out}", file=sys.stderr)
    if failed:
        raise CarsegError("\n".join(failed))


def plain(error: Exception, job: Job) -> str:
    """Give an error as one line that names its file; what is a bug is raised again."""
    if isinstance(error, OSError):
        return f"{error.filename or job.source}: {error.strerror or error}"
    if is_lack_of_memory(error):
        return f"{job.source}: takes more memory than there is; scale it down, or lower --jobs"
    if not isinstance(error, CarsegError):
        raise error
    return str(error)


def read(content: bytes, source: Path) -> Image.Image:
    """Read a photo of any mode as upright RGB; EXIF data and an RGB colour profile come along.

    Raises:
        CarsegError: it is not an image, or a camera's raw file.
    """
    ending = source.suffix.lower()
    if ending in RAW:
        raise CarsegError(
            f"{source}: is a camera's raw file, of which a preview at most can be read; convert it "
            "to JPEG or leave it out"
        )
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            drop_text(image)
            stands = turned_by_tag(image)
    except Image.DecompressionBombError as error:
        raise CarsegError(f"{source}: has too many pixels ({error}); scale it down") from error
    except MemoryError:  # of which the file is not to blame
        raise
    except Exception as error:  # Pillow has no common base for what a broken file may raise
        if not content:
            why = "is empty; save it anew"
        elif ending in HEIC:
            why = "is of a kind that Pillow does not read; convert it to JPEG"
        else:
            why = "cannot be read as an image; save it anew"
        raise CarsegError(f"{source}: {why} or leave it out") from error
    photo = as_photo(stands)
    kept = ("exif", "icc_profile") if stands.mode in ("RGB", "RGBA") else ("exif",)
    photo.info = {key: stands.info[key] for key in kept if key in stands.info}
    if "exif" in photo.info and not photo.info["exif"].startswith(EXIF_MARK):
        photo.info["exif"] = EXIF_MARK + photo.info["exif"]  # WebP goes without, JPEG does not
    return photo


def find(paths: Sequence[str], recursive: bool, out: Path | None = None) -> list[tuple[Path, Path]]:
    """List photos, each with the name that its results go by: a path without ending.

    Results of a folder's photos lie as those do in it.

    Args:
        paths: files, folders and patterns.
        recursive: look into folders in folders, too.
        out: where results go: no photos, in folders that were not named themselves.

    Raises:
        CarsegError: there is no such file, or no photo in a folder.
    """
    found: dict[Path, Path] = {}
    for text in paths:
        if not text:  # Path("") is the current folder
            raise CarsegError("a path is empty; name a photo, a folder or a pattern")
        named = Path(text).exists()
        matches = [text] if named else sorted(glob.glob(text, recursive=recursive))
        if not matches:
            raise CarsegError(f"{text}: there is no such file; check the path")
        photos: dict[Path, Path] = {}
        for path in map(Path, matches):
            if not path.is_dir():
                photos.setdefault(path, Path(path.stem))
            elif named or not _lies_in(path, out):
                for photo in _photos_in(path, recursive, out):
                    photos.setdefault(photo, photo.relative_to(path).with_suffix(""))
        if not photos:  # a pattern may match folders without any beside others
            hint = "" if recursive else ", or add --recursive"
            raise CarsegError(f"{text}: holds no photo; name another folder{hint}")
        found |= photos | found  # a photo that is met again keeps its name
    return list(found.items())


def _photos_in(folder: Path, recursive: bool, out: Path | None) -> Iterator[Path]:
    endings = Image.registered_extensions()  # asked for first, as it makes Pillow fill OPEN
    readable = Image.OPEN.keys() - NO_PHOTOS
    known = {end for end, kind in endings.items() if kind in readable}
    known |= RAW | HEIC  # which are told of, not passed over
    base = folder.resolve()  # once, as asking for each photo would take long
    results = None if out is None or _lies_in(folder, out) else out.resolve()
    for path in sorted(_all_below(folder) if recursive else folder.iterdir()):
        inside = path.relative_to(folder)
        made = results is not None and (base / inside).is_relative_to(results)
        if path.suffix.lower() in known and not made and not hidden(inside) and path.is_file():
            yield path


def _all_below(folder: Path) -> Iterator[Path]:
    """List files in folders in folders, but not in those that are linked to."""

    def tell(error: OSError) -> None:
        raise error  # else a folder that cannot be read would be passed over

    for place, _, names in os.walk(folder, onerror=tell):
        yield from (Path(place, name) for name in names)


def _lies_in(path: Path, out: Path | None) -> bool:
    return out is not None and path.resolve().is_relative_to(out.resolve())


def hidden(path: Path) -> bool:
    """Tell whether a file, or a folder that it is in, is out of sight."""
    return any(part.startswith(".") for part in path.parts)


def plan(found: Sequence[tuple[Path, Path]], out: Path, kinds: Kinds) -> list[Job]:
    """Name the files to write; photos of one name get their ending, then a number, behind it."""
    listed = []
    shared = Counter(_folded(name) for _, name in found)
    taken: set[str] = set()
    for source, name in found:
        if shared[_folded(name)] > 1:
            name = name.with_name(f"{name.name}_{source.suffix.lstrip('.')}")
        unique, number = name, 1
        while _folded(unique) in taken:
            number += 1
            unique = name.with_name(f"{name.name}_{number}")
        taken.add(_folded(unique))
        targets = {}
        for kind in kinds.names:
            tail = ENDINGS[kind] if len(kinds.names) == 1 else f"_{kind}{ENDINGS[kind]}"
            targets[kind] = out / unique.with_name(unique.name + tail)
        listed.append(Job(source, targets))
    return listed


def _folded(name: Path) -> str:
    """Give what is the same for names that are one on some file systems: a.jpg and A.JPG."""
    return unicodedata.normalize("NFC", name.as_posix()).casefold()


def refuse_losses(listed: Sequence[Job], force: bool, scenery: Path | None = None) -> None:
    """Check that no picture of the user's is written over nor, unless forced, any file.

    Raises:
        CarsegError: a line for each.
    """
    # Not by name: on some file systems a.JPG and a.jpg are one.
    sources = [job.source for job in listed if job.source.exists()]
    photos = {_identity(path) for path in sources}
    # Links are followed, too: where photos lie there may be others, not given this time.
    places = {path.parent for path in sources} | {path.resolve().parent for path in sources}
    folders = {_identity(path) for path in places}
    background = _identity(scenery) if scenery else None
    there = [path for job in listed for path in job.targets.values() if os.path.lexists(path)]
    lines = []
    for path in there:
        known = _identity(path) if path.exists() else None  # else a link to nothing
        if known in photos:
            lines.append(f"{path}: is one of the photos; choose another --out")
        elif known and known == background:
            lines.append(f"{path}: is the background; choose another --out")
        elif _identity(path.parent) in folders:
            lines.append(
                f"{path}: lies among the photos, where nothing is replaced; choose another --out, "
                "or remove it"
            )
    if not lines and not force:
        lines = [
            f"{path}: exists already; add --force to replace it, or choose another --out"
            for path in there
        ]
    if lines:
        raise CarsegError("\n".join(lines))


def _identity(path: Path) -> tuple[int, int]:
    """Give what is the same for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino


@contextmanager
def ended(results: Generator[object, None, None], stopped: Event) -> Iterator[None]:
    """Close a generator at the end of the block, early ones as well, and tell its threads."""
    try:
        yield
    finally:
        stopped.set()
        results.close()
