"""What is made of photos, and the files it goes to, none of which may be the user's."""

from __future__ import annotations

import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, ImageOps

from carseg.errors import IS_FOLDER, TOLD, CarsegError
from carseg.inputs import read
from carseg.overlay import TINT, TRUE_POSITIVE
from carseg.photos import HEIC, RAW
from carseg.piece import one_piece

ENDINGS = {"mask": ".png", "cutout": ".png", "overlay": ".jpg", "background": ".jpg"}
EXIF_MOST = 65533  # bytes of it that a JPEG holds


class Kinds:
    """What is made of a photo and its probability map.

    Attributes:
        names: of the kinds wanted: mask, cutout, overlay, background.
        threshold: probability from which a pixel is car.
        cleanup: whether only the largest piece of car is kept, and its holes filled.
        scenery: the file of the background, where it is a picture.
    """

    def __init__(
        self,
        names: Sequence[str],
        threshold: float | None = None,
        background: str | None = None,
        cleanup: bool | None = None,
    ) -> None:
        """Read the background, too.

        Args:
            names: of the kinds wanted; none: mask.
            threshold: probability from which a pixel is car; None: 0.5, or what `settle` says.
            background: a colour, as in CSS, or an image file.
            cleanup: keep only the largest piece of car, and fill its holes; None: likewise.

        Raises:
            CarsegError: the background is neither, or is an image that cannot be read.
            MemoryError: there is too little memory for it.
            OSError: it may not be read.
        """
        wanted = [*names, *(["background"] if background is not None else [])] or ["mask"]
        self.names = list(dict.fromkeys(wanted))
        self._given = threshold, cleanup
        self.settle(0.5, False)
        self._scene = Image.new("RGB", (1, 1))
        self._converted: tuple[bytes | None, Image.Image] = (b"", self._scene)  # as of a photo
        self.scenery: Path | None = None
        if background and Path(background).is_file():
            self.scenery = Path(background)
            self._scene = read(self.scenery.read_bytes(), self.scenery)
        elif background is not None:
            try:
                self._scene.putpixel((0, 0), ImageColor.getrgb(background)[:3])
            except ValueError as error:
                raise CarsegError(
                    f"--background {background}: neither a colour nor a file; try white or #1e90ff"
                ) from error

    def settle(self, threshold: float, cleanup: bool) -> None:
        """Take a model's threshold and clean-up where none was given."""
        wanted, clean = self._given
        self.threshold = threshold if wanted is None else wanted
        self.cleanup = cleanup if clean is None else clean

    def make(
        self, photo: Image.Image, found: NDArray[np.float32], names: Iterable[str] | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Yield kinds, each with its file's content.

        Args:
            photo: RGB, W×H; its EXIF data and colour profile are carried over.
            found: (H, W), probability of being car, 0…1.
            names: some of `Kinds.names`; None: all.
        """
        if self.cleanup:
            found = one_piece(found, self.threshold)
        for kind in self.names if names is None else names:
            yield kind, self._content(kind, photo, found)

    def _content(self, kind: str, photo: Image.Image, found: NDArray[np.float32]) -> bytes:
        if kind == "mask":
            picture = self._car(found)
        elif kind == "cutout":
            alpha = _alpha(found)
            # Black under transparent pixels, as whoever ignores alpha would see the photo there.
            picture = Image.new("RGB", photo.size)
            picture.paste(photo, mask=alpha.point(_is_seen))
            picture.putalpha(alpha)
        elif kind == "overlay":
            tinted = Image.blend(photo, Image.new("RGB", photo.size, TRUE_POSITIVE), TINT)
            picture = Image.composite(tinted, photo, self._car(found))
        else:
            scene = ImageOps.fit(self._scene_for(photo), photo.size)
            picture = Image.composite(photo, scene, _alpha(found))
        kept = {} if kind == "mask" else {
            key: photo.info[key] for key in ("exif", "icc_profile") if photo.info.get(key)
        }  # fmt: skip
        picture.info = {}  # a background's own, its comment say, would be saved
        content = io.BytesIO()
        if ENDINGS[kind] == ".png":
            picture.save(content, "PNG", compress_level=3, **kept)
        else:
            if len(kept.get("exif", b"")) > EXIF_MOST:
                del kept["exif"]
            picture.save(content, "JPEG", quality=92, **kept)
        return content.getvalue()

    def _scene_for(self, photo: Image.Image) -> Image.Image:
        profile = photo.info.get("icc_profile") or None  # some are empty
        known, scene = self._converted
        if known != profile:
            scene = in_colours(self._scene, profile)
            self._converted = profile, scene  # photos of a folder mostly have the same
        return scene

    def _car(self, found: NDArray[np.float32]) -> Image.Image:
        return Image.fromarray(found >= self.threshold).convert("L")


def in_colours(scene: Image.Image, wanted: bytes | None) -> Image.Image:
    """Convert an RGB picture from its own colour profile to another; None is sRGB."""
    given = scene.info.get("icc_profile")
    if given == wanted:
        return scene
    try:
        own, its = (
            ImageCms.ImageCmsProfile(
                io.BytesIO(profile) if profile else ImageCms.createProfile("sRGB")
            )
            for profile in (given, wanted)
        )
        return ImageCms.profileToProfile(scene, own, its) or scene
    except (OSError, ImageCms.PyCMSError):  # a broken one, or one of other colours than RGB
        return scene


def _alpha(found: NDArray[np.float32]) -> Image.Image:
    return Image.fromarray((found * 255).round().astype(np.uint8))


def _is_seen(alpha: int) -> int:
    return 255 if alpha else 0


class Job(NamedTuple):
    """A photo and the files that are made of it, by kind."""

    source: Path
    targets: dict[str, Path]


def plan(
    found: Sequence[tuple[Path, Path]], out: Path, kinds: Kinds, numbered: bool = True
) -> list[Job]:
    """Name the files to write; equal names get the photo's extension, then a number, appended.

    What Pillow cannot read gets its extension, too, so that it changes no photo's name.

    Raises:
        CarsegError: one would need a number, and is not to be `numbered`.
    """
    listed = []
    unreadable = RAW | (HEIC - Image.registered_extensions().keys())
    hopeless = {source for source, _ in found if source.suffix.lower() in unreadable}
    shared = Counter(_folded(name) for source, name in found if source not in hopeless)
    taken: dict[str, Path] = {}
    for source, name in found:
        if source in hopeless or shared[_folded(name)] > 1:
            name = name.with_name(f"{name.name}_{source.suffix.lstrip('.')}")
        unique, number = name, 1
        while _folded(unique) in taken:
            if not numbered:
                other = taken[_folded(unique)]
                raise CarsegError(
                    f"{source}: its results would have the names of those of {other}, "
                    "and --skip-existing could take one's for the other's; give each folder an "
                    "--out of its own, or rename one of the two"
                )
            number += 1
            unique = name.with_name(f"{name.name}_{number}")
        taken[_folded(unique)] = source
        targets = {}
        for kind in kinds.names:
            tail = ENDINGS[kind] if len(kinds.names) == 1 else f"_{kind}{ENDINGS[kind]}"
            targets[kind] = out / unique.with_name(unique.name + tail)
        listed.append(Job(source, targets))
    return listed


def _folded(name: Path) -> str:
    """Return a key, equal for names that some file systems treat as one: a.jpg and A.JPG."""
    return unicodedata.normalize("NFC", name.as_posix()).casefold()


def refuse_overwriting(listed: Sequence[Job], force: bool, scenery: Path | None = None) -> None:
    """Check that no photo, background or file among photos is replaced, nor, unless forced, any.

    Raises:
        CarsegError: a line for each, for `TOLD` at most.
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
        if path.is_dir():
            lines.append(f"{path}: {IS_FOLDER}")
        elif known in photos:
            lines.append(f"{path}: is one of the photos; choose another --out")
        elif known and known == background:
            lines.append(f"{path}: is the background; choose another --out")
        elif _identity(path.parent) in folders:
            lines.append(
                f"{path}: lies among the photos, where nothing is replaced; choose another --out"
            )
    more = "cannot be written"
    if not lines and not force:
        more = "exist already"
        lines = [
            f"{path}: exists already; add --force to replace it, --skip-existing to make only the "
            "others, or choose another --out"
            for path in there
        ]
    if len(lines) > TOLD:
        lines[TOLD:] = [f"and {len(lines) - TOLD} more {more}"]
    if lines:
        raise CarsegError("\n".join(lines))


def missing(listed: Sequence[Job]) -> list[Job]:
    """Return jobs with those of their files alone that do not exist, and none without any.

    A mask a.PNG counts as a.png: for some file systems, and for the pipeline, both are one.
    """
    folders = {path.parent for job in listed for path in job.targets.values()}
    there = {_folded(each) for folder in folders if folder.is_dir() for each in folder.iterdir()}
    left = [
        Job(job.source, {k: path for k, path in job.targets.items() if _folded(path) not in there})
        for job in listed
    ]
    return [job for job in left if job.targets]


def _identity(path: Path) -> tuple[int, int]:
    """Return what is the same for all names of a file."""
    status = path.stat()
    return status.st_dev, status.st_ino
