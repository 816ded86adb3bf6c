"""Arrays in files instead of memory, so that memory stays flat however many photos there are."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from carseg.processes import Processes

PREFIX = ".squares."


class Store:
    """Arrays in a file of their own, written once, read one at a time.

    Arrays read repeatedly stay in the system's page cache, which shrinks when memory runs short.
    Other processes may read, too.
    """

    def __init__(self, folder: Path, arrays: Iterable[NDArray[Any]]) -> None:
        """Write the arrays, which are taken one by one, to a new file in `folder`.

        Raises:
            OSError: the disk is full or fails.
        """
        handle, name = tempfile.mkstemp(dir=folder)
        self._path = Path(name)
        self._starts = array("q")  # in bytes
        try:
            with os.fdopen(handle, "wb") as file:
                for values in arrays:
                    self._starts.append(file.tell())
                    content = io.BytesIO()  # NumPy, writing to a full disk, would not say so
                    np.save(content, values)
                    file.write(content.getbuffer())
                    file.flush()
        except OSError as error:
            if error.filename or not error.errno:  # of what the arrays are read from
                raise
            raise OSError(error.errno, error.strerror, name) from error

    def __getitem__(self, i: int) -> NDArray[Any]:
        """Read the i-th array."""
        with self._path.open("rb") as file:
            file.seek(self._starts[i])
            values: NDArray[Any] = np.load(file)
        return values


@contextmanager
def scratch_folder(processes: Processes) -> Iterator[Path]:
    """Yield a folder for stores in the working directory, one for all processes of a machine.

    It is removed at the end; folders left over from killed trainings are removed at the start.
    """
    if processes.first:
        for left in Path().glob(f"{PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
    processes.barrier()  # no one goes on before that is done
    made = tempfile.mkdtemp(prefix=PREFIX, dir=Path()) if processes.local_rank == 0 else ""
    folders = processes.all_gather([made])
    try:
        yield Path(folders[processes.machine][0])
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)
