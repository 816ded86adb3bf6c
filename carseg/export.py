"""`carseg export`: trained weights as files that other programs read, with a model card."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from carseg import weights
from carseg.card import Card, card
from carseg.errors import IS_FOLDER, CarsegError, as_memory_error, import_optional
from carseg.files import check_writable, write_bytes
from carseg.formats import FILES, NETWORKS, PACKAGES, WRITERS, Probability
from carseg.quantize import Calibration, write_int8


def export(
    source: Path,
    out: Path,
    formats: Sequence[str],
    size: int,
    batch: int | None,
    force: bool,
    photos: Sequence[Path] = (),
) -> list[Path]:
    """Write the weights in all `formats`, with a model card; every file is checked first.

    Args:
        source: a .pth file of a training.
        out: the folder to write to; what is in it besides stays.
        formats: keys of `WRITERS`.
        size: side of the square that the net sees, in pixels.
        batch: photos at once, None: any number.
        force: replace files that exist.
        photos: networks are to compute in 8-bit integers, with the ranges that these photos give;
            none: in float32.

    Returns:
        The files written.

    Raises:
        CarsegError: the weights or a photo cannot be read, a package is missing, a file exists, or
            what was exported does not compute what torch does.
        MemoryError: there is too little memory.
        OSError: a file cannot be written, or a photo may not be read.
    """
    formats = list(dict.fromkeys(formats))
    net = weights.read(source)
    if photos and not NETWORKS.intersection(formats):
        raise CarsegError(
            "--int8: safetensors hold float32 weights alone; add --format onnx or openvino"
        )
    for format in dict.fromkeys([*formats, *(["onnx"] if photos else [])]):  # the way to 8 bits
        for package in PACKAGES[format]:  # before any of them takes its time
            import_optional(package, format)
    names = [name for format in formats for name in FILES[format]] + ["MODEL_CARD.md"]
    _check_targets([out / name for name in names], force)
    check_writable(out)  # now, not when photos have been read
    about = Card.of(source, net.variant, size)
    calibration = Calibration.of(photos, size, about.threshold) if photos else None
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export.") as folder, as_memory_error():
        fresh = Path(folder)
        agreement = None
        if calibration:
            agreement = write_int8(
                Probability(net).eval(), fresh, formats, size, batch, about.metadata(), calibration
            )
            formats = [format for format in formats if format not in NETWORKS]
        for format in formats:
            WRITERS[format](Probability(net).eval(), fresh, size, batch, about.metadata())
        write_bytes(fresh / "MODEL_CARD.md", card(about, names[:-1], batch, agreement).encode())
        _check_targets([out / name for name in names], force)  # again, as this took a while
        replace_all(fresh, out, names)
    return [out / name for name in names]


def replace_all(fresh: Path, out: Path, names: Sequence[str]) -> None:
    """Move new files into a folder, replacing all old ones or none.

    Old ones are moved away first: if the process is killed in between, a network in two files must
    not mix one of them with one of an earlier export.

    Args:
        fresh: folder of the new files; old ones are moved to a subfolder of it.
        out: the folder to move them to.
        names: of the files.

    Raises:
        OSError: one cannot be replaced; the old ones are restored.
    """
    old = fresh / "old"
    old.mkdir()
    try:
        for name in names:
            if os.path.lexists(out / name):
                os.replace(out / name, old / name)
        for name in names:
            os.replace(fresh / name, out / name)
    except BaseException:  # an interrupt, too, as that folder is removed
        for name in names:
            if not os.path.lexists(fresh / name):
                (out / name).unlink(missing_ok=True)
        for path in old.iterdir():
            os.replace(path, out / path.name)
        raise


def _check_targets(paths: Sequence[Path], force: bool) -> None:
    wrong = [path for path in paths if path.is_dir()]
    fault = IS_FOLDER
    if not wrong and not force:
        wrong = [path for path in paths if os.path.lexists(path)]  # links to nothing, too
        fault = "exists already; add --force to replace it"
    if wrong:
        raise CarsegError("\n".join(f"{path}: {fault}" for path in wrong))
