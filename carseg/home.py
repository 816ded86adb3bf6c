"""Where the user's own files lie while DVC runs an experiment in a copy of the project."""

from __future__ import annotations

import os
from pathlib import Path


def home_of(root: Path) -> Path | None:
    """Return the user's project where `root` is one of DVC's temporary copies of it, else None.

    Such a copy (`dvc exp run --temp`, `--queue`) holds what git knows, so no photos or weights.
    DVC_ROOT may be another project's, a stage of which runs this one: then there is none.
    """
    home = Path(os.environ.get("DVC_ROOT", root)).resolve()
    return home if root.resolve().is_relative_to((home / ".dvc/tmp").resolve()) else None


def at_home(path: Path) -> Path:
    """Return the path in the user's project where this is one of DVC's temporary copies of it."""
    return (home_of(Path(".")) or Path(".")) / path
