"""Arrays in files: what is written is what is read, by any process, and nothing is left behind."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from carseg.processes import ALONE, Processes
from carseg.store import PREFIX, Store, scratch_folder

ANY = st.lists(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3)), max_size=5)


@pytest.fixture(autouse=True)
def _folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@given(given_arrays=ANY)
def test_arrays_are_read_as_they_were_written(given_arrays: list[NDArray[np.uint8]]) -> None:
    with scratch_folder(ALONE) as folder:
        store = Store(folder, given_arrays)
        # As processes that load photos get it.
        for reader in (store, pickle.loads(pickle.dumps(store))):
            for i in reversed(range(len(given_arrays))):
                np.testing.assert_array_equal(reader[i], given_arrays[i])


def test_a_store_does_not_hold_what_it_wrote() -> None:
    taken = 0

    def large() -> NDArray[np.uint8]:
        nonlocal taken
        taken += 1
        return np.zeros(10**6, np.uint8)

    store = Store(Path(), (large() for _ in range(7)))
    assert taken == 7
    assert len(pickle.dumps(store)) < 1000


@pytest.mark.parametrize("size", [10, 10**5])  # in the buffer, and past it
def test_a_full_disk_is_told_with_the_file(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no full device here")
    full = open("/dev/full", "wb")  # noqa: SIM115 - the store closes it
    monkeypatch.setattr("carseg.store.os.fdopen", lambda handle, _: os.close(handle) or full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        Store(Path(), [np.zeros(size, np.uint8)])
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename


def test_a_scratch_folder_is_removed_and_so_is_what_killed_runs_left() -> None:
    left = Path(f"{PREFIX}left")
    left.mkdir()
    (left / "squares").write_bytes(b"half")
    with scratch_folder(ALONE) as folder:
        assert not left.exists()
        assert folder.is_dir()
        Store(folder, [np.zeros(3, np.uint8)])
    assert list(Path().iterdir()) == []


def test_a_scratch_folder_is_removed_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), scratch_folder(ALONE):
        raise ZeroDivisionError
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("rank", "here", "beside", "ranks"),
    [(0, 0, 2, [0, 1]), (1, 1, 2, [0, 1]), (2, 0, 3, [2, 3, 4]), (4, 2, 3, [2, 3, 4])],
)
def test_processes_know_those_of_their_machine(
    rank: int, here: int, beside: int, ranks: list[int]
) -> None:
    """Two processes on one machine, three on another."""
    assert list(range(5))[Processes(rank, 5, here, beside).machine] == ranks
