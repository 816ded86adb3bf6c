"""`carseg masks import`: annotation files into `Mask/`, checked against the photos."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carseg.annotations import Annotated, Region, check_size, read
from carseg.errors import IS_FOLDER, CarsegError, warn_of
from carseg.files import write_bytes
from carseg.pairs import MASKS, PHOTOS, shared_name
from carseg.photos import HEIC, RAW, read_photo


def import_masks(
    files: Sequence[Path], classes: Sequence[str], images: Path, out: Path, force: bool
) -> list[Path]:
    """Write a mask for every annotated picture that has a region of one of the classes.

    Nothing is written unless everything is right; several regions in a picture are pointed out.

    Args:
        files: COCO JSON, LabelMe JSON or CVAT XML.
        classes: names of what is car; none: the only class there is.
        images: the photos, to compare sizes with.
        out: the folder for the masks.
        force: replace masks that exist; those that are the same may exist anyway.

    Returns:
        The masks written; those that are there already, the same, are not among them.

    Raises:
        CarsegError: a line for each fault.
        OSError: a mask cannot be written.
    """
    faults: list[str] = []
    from_file = list(_all(files, faults))
    annotated = [picture for _, picture in from_file]
    wanted = _wanted(annotated, classes, faults)
    ambiguous = _ambiguous(annotated)
    endings = Image.registered_extensions().keys() | HEIC | RAW  # which are told of
    photos, existing = _by_stem(images, endings), _by_stem(out, MASKS)
    masks: dict[Path, bytes] = {}
    source: dict[Path, Path] = {}  # the annotation file that a mask is of
    several: list[str] = []
    for file, picture in from_file:
        regions = [region for region in picture.regions if region.label in wanted]
        if not regions:
            continue
        stem = shared_name(picture.name)
        try:
            path = _target(stem, existing.get(stem, [out / f"{stem}.png"]), ambiguous)
            if path in masks:
                other = "twice" if source[path] == file else f"as {source[path]} does"
                raise CarsegError(
                    f"{file}: annotates {picture.name} {other}; remove one of the two"
                )
            _check(picture, photos.get(stem, []), images)  # too large a picture is not drawn
            masks[path], source[path] = _png(_union(regions)), file
            # On some disks in other case, too.
            if not force and os.path.lexists(path) and not _holds(path, masks[path]):
                raise CarsegError(f"{path}: exists already; add --force to replace it")
            if len(regions) > 1:
                several.append(f"{path}: is white where any of {len(regions)} regions is")
        except CarsegError as error:
            if str(error) not in faults:
                faults.append(str(error))
    if not masks and not faults:
        faults.append("no picture has a region; annotate the cars first")
    if faults:
        raise CarsegError("\n".join(faults))
    written = [path for path, content in masks.items() if not _holds(path, content)]
    for path in written:
        write_bytes(path, masks[path])
    lines = (f"{line}; cars further back want another class, or none" for line in several)
    warn_of(lines, "have several regions")
    return written


def _wanted(
    annotated: Sequence[Annotated], classes: Sequence[str], faults: list[str]
) -> Collection[str]:
    """Return the classes that are car; `faults` gets those that do not exist."""
    known = sorted({region.label for picture in annotated for region in picture.regions})
    if not classes and len(known) > 1:
        faults.append(f"there are several classes, {', '.join(known)}; choose with --class")
    for name in classes if known else ():
        if name not in known:
            faults.append(f"--class {name}: there is no such class; there are {', '.join(known)}")
    return classes or known


def _target(stem: str, paths: Sequence[Path], ambiguous: Mapping[str, Sequence[str]]) -> Path:
    """Return the path of a mask, of those that have its name."""
    if names := ambiguous.get(stem):
        raise CarsegError(
            f"{', '.join(names)}: would share a mask, {stem}.png; rename one, and export anew"
        )
    path, *others = paths
    if path.is_dir():
        raise CarsegError(f"{path}: {IS_FOLDER}")
    if others:
        raise CarsegError(f"{others[0]}: shares its name with {path}; remove one")
    return path


def _all(files: Sequence[Path], faults: list[str]) -> Iterator[tuple[Path, Annotated]]:
    for path in dict.fromkeys(files):
        try:
            yield from ((path, picture) for picture in read(path))
        except CarsegError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{path}: cannot be read ({error.strerror}); check its permissions")


def _ambiguous(annotated: Sequence[Annotated]) -> dict[str, list[str]]:
    """List pictures in different folders that share a name, by it: masks tell no folder."""
    by_stem: dict[str, set[str]] = {}
    for picture in annotated:
        name = PurePosixPath(picture.name)
        if len(name.parts) > 1:  # else it may be the same picture, named without its folder
            by_stem.setdefault(shared_name(name.name), set()).add(str(name))
    return {stem: sorted(names) for stem, names in by_stem.items() if len(names) > 1}


def _by_stem(folder: Path, endings: Container[str]) -> dict[str, list[Path]]:
    """List the files of a folder that have one of these endings, in any case, by stem."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in endings:
            found.setdefault(shared_name(path.name), []).append(path)
    return found


def _union(regions: Sequence[Region]) -> NDArray[np.bool_]:
    """Draw regions one after the other into one mask, (H, W)."""
    return reduce(np.logical_or, (region.draw() for region in regions))


def _check(picture: Annotated, found: Sequence[Path], images: Path) -> None:
    """Check a picture against its photo, one of the files that have its name."""
    photos = [path for path in found if path.suffix.lower() in PHOTOS]
    if not found:
        raise CarsegError(
            f"{picture.name}: is not in {images}; put the photo there, or name its folder"
        )
    if not photos:
        raise CarsegError(f"{found[0]}: is not a .jpg file; convert it")
    try:
        check_size(picture.width, picture.height)
    except CarsegError as error:
        raise CarsegError(f"{picture.name}: {error}") from error
    width, height = read_photo(photos[0]).size
    if (width, height) != (picture.width, picture.height):
        raise CarsegError(
            f"{photos[0]}: is {width}x{height} but was annotated as "
            f"{picture.width}x{picture.height}; put the photo that was annotated there, or "
            "annotate this one, in a tool that heeds its EXIF tag"
        )


def _holds(path: Path, content: bytes) -> bool:
    """Tell whether a mask was written already, as before an interruption."""
    return path.is_file() and path.read_bytes() == content


def _png(mask: NDArray[np.bool_]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(mask).convert("L").save(content, "PNG")
    return content.getvalue()
