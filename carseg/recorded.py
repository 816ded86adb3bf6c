"""A guard against changes during a stage: DVC records what it depends on only at its end."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from carseg.errors import CarsegError
from carseg.files import SYSTEMS
from carseg.params import read_yaml

CODE = ("carseg/", "stages/")
OWN = "Weights"  # the user's, where `official.provide` looks itself, as it brings files there


class Recorded:
    """A stage's parameters, code and data as they are when this is made.

    Outside of a project there are none.

    Attributes:
        code: SHA-256 of each module that dvc.yaml names under the stage, by its path.
    """

    def __init__(self, stage: str) -> None:
        """Look at what dvc.yaml names under `stage`."""
        named = _read(Path("dvc.yaml")).get("stages", {}).get(stage, {})
        self._params: list[str] = named.get("params", [])
        deps: list[str] = named.get("deps", [])
        self._modules = [Path(path) for path in deps if path.startswith(CODE)]
        self._data = [path for path in deps if not path.startswith(CODE) and path != OWN]
        self.code = self._digests()
        self._before = self._look(self.code)

    def check(self) -> None:
        """Check that all is as it was.

        Raises:
            CarsegError: a parameter, a module or data were changed.
        """
        now = self._look(self._digests())
        for name in self._before | now:
            if self._before.get(name) != now.get(name):
                first = "" if name.removesuffix(":") in self._data else "set it back and "
                raise CarsegError(
                    f"{name} was changed while this ran; {first}run again, as DVC would record the "
                    "result as made with it"
                )

    def _look(self, code: Mapping[str, str]) -> dict[str, object]:
        values = _read(Path("params.yaml"))
        params = {f"params.yaml: {name}": values.get(name) for name in self._params}
        data = {f"{path}:": state(files_below(path)) for path in self._data}
        return params | data | {f"{path}:": digest for path, digest in code.items()}

    def _digests(self) -> dict[str, str]:
        found = {}
        for path in self._modules:
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                content = file.read_bytes() if file.is_file() else b""
                found[file.as_posix()] = hashlib.sha256(content).hexdigest()
        return found


def state(paths: Iterable[str]) -> int:
    """Return a number made of files' paths, sizes and times of their last change."""
    total = 0  # of hashes: no list of files is kept to sort them
    for path in paths:
        found = os.stat(path)
        text = repr((path, found.st_size, found.st_mtime_ns))
        total ^= int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest())
    return total


def files_below(path: str | Path) -> Iterable[str]:
    """Yield the paths of all files in a folder and its subfolders, or that of a file.

    What is hidden, or a file manager's, is left out, as `.dvcignore` leaves it out.
    """
    if os.path.isfile(path):
        yield os.fspath(path)
    for folder, _, names in os.walk(path):
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and name not in SYSTEMS and os.path.isfile(path):
                yield path


def _read(path: Path) -> dict[str, Any]:
    """Read a mapping; what cannot be read, as while it is being edited, is an empty one."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
