"""Photos that a command is given: which ones, and what they show."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from functools import cache, partial
from os.path import islink, join
from pathlib import Path

from PIL import ExifTags, Image

from carseg.errors import CarsegError, warn
from carseg.photos import HEIC, RAW, as_rgb, blaming, decode

# What Pillow opens without being able to give its pixels, or by another program alone.
NO_PHOTOS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}

# Folders of systems and network disks: out of sight, out of reach, or of what was deleted.
SYSTEM = {"lost+found", "$recycle.bin", "system volume information", "@eadir", "#recycle"}
SEPARATORS = tuple(filter(None, (os.sep, os.altsep)))


def list_photos(
    paths: Sequence[str], recursive: bool, out: Path | None = None
) -> list[tuple[Path, Path]]:
    """List photos, each with the relative path of its results, without extension.

    Results of a folder's photos keep its subfolders.

    Args:
        paths: files, folders and patterns.
        recursive: search subfolders, too.
        out: folder of results; its files are no photos, unless a path or pattern leads into it.

    Raises:
        CarsegError: there is no such file, or no photo in a folder.
        OSError: a folder may not be read.
    """
    found: dict[Path, Path] = {}
    for text in paths:
        if not text:  # Path("") is the current folder
            raise CarsegError("a path is empty; name a photo, a folder or a pattern")
        named = Path(text).exists()
        met = [Path(text)] if named else matches(text)
        if not met:
            raise CarsegError(f"{text}: there is no such file; check the path")
        photos: dict[Path, Path] = {}
        results = set() if named else _results(text, met, out)
        for path in met:
            if path in results:
                continue
            if not path.is_dir():
                photos.setdefault(path, Path(path.stem))
            else:
                for photo in _photos_in(path, recursive, out):
                    photos.setdefault(photo, photo.relative_to(path).with_suffix(""))
        if not photos and results:
            raise CarsegError(f"{text}: matches nothing but results, in {out}; name another --out")
        if results:
            warn(f"{text}: what it matches in {out} is taken for results, and passed over")
        if not photos:  # a pattern may match folders without any beside others
            hint = "" if recursive else ", or add --recursive"
            raise CarsegError(f"{text}: holds no photo; name another folder{hint}")
        found |= photos | found  # a photo that is met again keeps its name
    resolve = cache(Path.resolve)  # by folder, as by photo it would take long
    once: dict[Path, tuple[Path, Path]] = {}
    for photo, name in found.items():  # one photo may be named in several ways
        once.setdefault(resolve(photo.parent) / photo.name, (photo, name))
    return list(once.values())


def matches(pattern: str) -> list[Path]:
    """List what a pattern matches.

    Of **, not what is hidden, lies in `SYSTEM` or beyond a link to a folder, which may have no end.

    Raises:
        OSError: a folder below ** may not be read.
    """
    start = _fixed(pattern)
    rest = pattern[len(start) :]
    wanted = Path(rest).parts
    if "**" not in wanted:
        return [Path(path) for path in sorted(glob.glob(glob.escape(start) + rest))]
    first = wanted.index("**")
    tops = matches(join(glob.escape(start), *wanted[:first])) if first else [Path(start)]
    found = (
        path
        for top in tops
        if not first or _is_entered(top)
        for path in (top, *_all_below(top))
        if _fit(path.relative_to(top).parts, wanted[first:])
    )
    folders_alone = rest.endswith(SEPARATORS)
    return sorted((path for path in found if not folders_alone or path.is_dir()), key=str)


def _is_entered(folder: Path) -> bool:
    aside = folder.is_symlink() or folder.name.casefold() in SYSTEM
    return folder.is_dir() and not aside


def _fit(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Return whether folders' names and a file's fit patterns, ** any number of them."""
    if not patterns:
        return not names
    first, *more = patterns
    if first == "**":
        return any(_fit(names[i:], more) for i in range(len(names) + 1))
    return bool(names) and fnmatch(names[0], first) and _fit(names[1:], more)


def _fixed(pattern: str) -> str:
    """Return the start of a pattern that is a folder's name as it is written, brackets and all."""
    ends = [i + 1 for i, letter in enumerate(pattern) if letter in SEPARATORS]
    return next((pattern[:end] for end in reversed(ends) if Path(pattern[:end]).is_dir()), "")


def _photos_in(folder: Path, recursive: bool, out: Path | None) -> Iterator[Path]:
    endings = Image.registered_extensions()  # asked for first, as it makes Pillow fill OPEN
    readable = Image.OPEN.keys() - NO_PHOTOS
    known = {end for end, kind in endings.items() if kind in readable}
    known |= RAW | HEIC  # which are told of, not passed over
    within = cache(partial(_lies_in, out=out))  # by folder, as by photo it would take long
    led_there = within(folder)
    for path in sorted(_all_below(folder) if recursive else folder.iterdir()):
        inside = path.relative_to(folder)
        made = not led_there and within(path.parent)
        # A link to what is gone is told of, not passed over.
        there = path.is_file() or (path.is_symlink() and not path.exists())
        if path.suffix.lower() in known and not made and not hidden(inside) and there:
            yield path


def _all_below(folder: Path) -> Iterator[Path]:
    """List what a folder and those in it hold, but nothing hidden, in `SYSTEM` or beyond links."""

    def tell(error: OSError) -> None:
        raise error  # else a folder that cannot be read would be passed over

    for place, folders, names in os.walk(folder, onerror=tell):
        folders[:] = [
            name
            for name in folders
            if not (name.startswith(".") or name.casefold() in SYSTEM or islink(join(place, name)))
        ]
        yield from (Path(place, name) for name in (*folders, *names) if not name.startswith("."))


def _results(pattern: str, met: Sequence[Path], out: Path | None) -> set[Path]:
    """Return what was met in `out`, maybe earlier results, unless the pattern leads there."""
    if _lies_in(Path(_fixed(pattern)), out):
        return set()
    # By folder, as asking for each photo would take long.
    made = {folder for folder in {path.parent for path in met} if _lies_in(folder, out)}
    return {path for path in met if path.parent in made or (path.is_dir() and _lies_in(path, out))}


def _lies_in(path: Path, out: Path | None) -> bool:
    if out is None or not out.exists():
        return False
    place = path.resolve()  # not by name: on some file systems Out and out are one
    return any(each.exists() and each.samefile(out) for each in (place, *place.parents))


def hidden(path: Path) -> bool:
    """Return whether a file, or a folder that it is in, is out of sight."""
    return any(part.startswith(".") for part in path.parts)


def read(content: bytes, source: Path) -> Image.Image:
    """Read a photo of any mode as upright RGB; EXIF data and an RGB colour profile come along.

    The previews among EXIF data do not: they would show what a result leaves out.

    Raises:
        CarsegError: it is not an image, or a camera's raw file.
        MemoryError: there is too little memory for it.
    """
    with blaming(source, content):
        stands = decode(content)
        photo = as_rgb(stands)
    kept = ("exif", "icc_profile") if stands.mode in ("RGB", "RGBA") else ("exif",)
    photo.info = {key: stands.info[key] for key in kept if key in stands.info}
    if "exif" in photo.info:
        photo.info["exif"] = _without_previews(stands)
    return photo


def _without_previews(image: Image.Image) -> bytes:
    """Return an image's EXIF data written anew; nothing, where they cannot be."""
    try:
        exif = image.getexif()
        # Of a form that each maker keeps to itself; some put a preview there.
        exif.get_ifd(ExifTags.IFD.Exif).pop(ExifTags.Base.MakerNote, None)
        return exif.tobytes()  # without the second directory, which holds the usual preview
    except MemoryError:
        raise
    except Exception:  # whatever Pillow raises of malformed ones
        return b""
