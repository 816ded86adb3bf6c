"""Writing that is all or nothing: a temporary neighbour first, then one rename."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SYSTEMS = ("Thumbs.db", "desktop.ini")  # what file managers write into folders that they show
PREFIX = ".part."  # of what is being written; its own name before that might be too long


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path`, so that a reader sees the old file or the new, never a part.

    Raises:
        OSError: that is not possible.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _neighbour(path)
    try:
        with part.open("xb") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:  # it tells of the temporary file, or, of a full disk, of none
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # of a disk that is lost, say, which the first error tells
            part.unlink(missing_ok=True)


def _neighbour(path: Path) -> Path:
    """Return a path of nothing in the same folder; what `tempfile` makes keeps other users out."""
    return path.with_name(PREFIX + secrets.token_hex(8))


def check_writable(folder: Path) -> None:
    """Check that files can be written in a folder, or that it can be made.

    Raises:
        OSError: that is not so.
    """
    whole = (folder, *folder.absolute().parents)  # on Windows all of it may be missing
    place = next((each for each in whole if os.path.lexists(each)), folder)
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=PREFIX):
            pass
    except OSError as error:  # it tells of the temporary one
        raise OSError(error.errno, error.strerror, str(place)) from error


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write `value` as indented JSON, keys in the order given.

    Raises:
        OSError: as `write_bytes`.
    """
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table as CSV, with the same bytes on every platform.

    Raises:
        OSError: as `write_bytes`.
    """
    table: list[Sequence[object]] = [header, *rows]
    # Before Python 3.13 a lone carriage return is left unquoted, which no reader understands.
    odd = any("\r" in str(cell) for row in table for cell in row)
    text = io.StringIO(newline="")
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
    )
    writer.writerows(table)
    write_bytes(path, text.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table that `write_csv` wrote, one dict a row."""
    return parse_csv(path.read_bytes().decode())


def parse_csv(text: str) -> list[dict[str, str]]:
    """Read a table from text that `write_csv` wrote, one dict a row."""
    return list(csv.DictReader(io.StringIO(text, newline="")))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that replaces `path` if the block succeeds.

    Raises:
        OSError: the folder, or a file in it, cannot be written; it names the one in `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _named_in_place(path):
        fresh = _neighbour(path)
        try:
            fresh.mkdir()
            yield fresh
            _replace_directory(path, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _replace_directory(path: Path, fresh: Path) -> None:
    old = fresh.with_name(fresh.name + ".old")
    try:
        if path.is_dir():
            os.replace(path, old)  # at once: what cannot be removed whole stays whole
        os.replace(fresh, path)
    except BaseException:  # an interrupt, too
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _named_in_place(path: Path) -> Iterator[None]:
    """Let errors about temporary neighbours of `path`, or files in them, name `path` instead."""
    try:
        yield
    except OSError as error:
        named = error.filename2 or error.filename  # of two, what was written is the second
        folder = Path(os.path.abspath(path.parent))
        place = Path(os.path.abspath(os.fsdecode(named or "")))
        first, *rest = place.relative_to(folder).parts if folder in place.parents else ("",)
        if not first.startswith(PREFIX) and first != path.name:
            raise
        raise OSError(error.errno, error.strerror, str(path.joinpath(*rest))) from error
