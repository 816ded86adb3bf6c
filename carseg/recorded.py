"""A guard against changes during a stage: DVC records parameters and code only at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from carseg.errors import CarsegError
from carseg.params import read_yaml

CODE = ("carseg/", "stages/")


class Recorded:
    """A stage's parameters and code, as they are when this is made; outside of a project none.

    Attributes:
        code: SHA-256 of each module that dvc.yaml names under the stage, by its path.
    """

    def __init__(self, stage: str) -> None:
        """Look at what dvc.yaml names under `stage`."""
        named = _read(Path("dvc.yaml")).get("stages", {}).get(stage, {})
        self._params: list[str] = named.get("params", [])
        self._modules = [Path(path) for path in named.get("deps", []) if path.startswith(CODE)]
        self.code = self._digests()
        self._before = self._look(self.code)

    def check(self) -> None:
        """Check that all is as it was.

        Raises:
            CarsegError: a parameter or a module was changed.
        """
        now = self._look(self._digests())
        for name in self._before | now:
            if self._before.get(name) != now.get(name):
                raise CarsegError(
                    f"{name} was changed while this ran; set it back and run again, as DVC would "
                    "record the result as made with it"
                )

    def _look(self, code: Mapping[str, str]) -> dict[str, object]:
        values = _read(Path("params.yaml"))
        params = {f"params.yaml: {name}": values.get(name) for name in self._params}
        return params | {f"{path}:": digest for path, digest in code.items()}

    def _digests(self) -> dict[str, str]:
        found = {}
        for path in self._modules:
            for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
                content = file.read_bytes() if file.is_file() else b""
                found[file.as_posix()] = hashlib.sha256(content).hexdigest()
        return found


def _read(path: Path) -> dict[str, Any]:
    """Read a mapping; what cannot be read, as while it is being edited, is an empty one."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
