"""What DVC has recorded of a project's last run: `dvc.lock`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from carseg.errors import CarsegError
from carseg.params import read_yaml


class Content(BaseModel):
    """A file or folder as a stage has read or written it."""

    path: str
    md5: str | None = None
    size: int | None = None  # bytes, of a folder those of all files in it
    nfiles: int | None = None  # of a folder


class Stage(BaseModel):
    """One stage's run."""

    deps: list[Content] = []
    outs: list[Content] = []
    params: dict[str, dict[str, Any]] = {}  # file → name → value

    def differs(self, file: Path) -> bool:
        """Return whether a file beside dvc.lock is another than this run recorded by its name."""
        recorded = self.md5(file.name)
        if recorded is None or not file.is_file():
            return False
        with file.open("rb") as content:
            return hashlib.file_digest(content, "md5").hexdigest() != recorded

    def md5(self, path: str) -> str | None:
        """Return the hash of what was read or written at a path, if it is known."""
        return next((each.md5 for each in (*self.deps, *self.outs) if each.path == path), None)

    def output(self, path: str) -> Content | None:
        """Return what was written at a path, if anything."""
        return next((out for out in self.outs if out.path == path), None)

    def settings(self) -> dict[str, Any]:
        """Return the parameters of the run, by name."""
        return self.params.get("params.yaml", {})


class Lock(BaseModel):
    """All stages' last runs, by name."""

    stages: dict[str, Stage] = {}

    def of(self, stage: str) -> Stage:
        """Return what is recorded of a stage, which may be nothing."""
        return self.stages.get(stage, Stage())

    def maker(self, path: str) -> Stage:
        """Return the run that writes a file, which may be none that is known."""
        return next((run for run in self.stages.values() if run.output(path)), Stage())


def read_lock(path: Path) -> Lock:
    """Read a dvc.lock; where there is none, nothing is recorded.

    Raises:
        CarsegError: it is broken.
    """
    if not path.is_file():
        return Lock()
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise CarsegError(
            f"{path}: is not what DVC writes there; git checkout it, or delete it; run dvc repro"
        ) from error


def parse_lock(text: str) -> Lock:
    """Read the text of a dvc.lock.

    Raises:
        yaml.YAMLError, ValueError: it is broken.
    """
    return Lock.model_validate(read_yaml(text))
