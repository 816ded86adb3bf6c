"""Work in threads: in order, bounded, and let go of when nobody waits for it."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from carseg.ahead import MOST, ahead, cores, on_cores
from carseg.errors import CarsegError


def test_reading_ahead_keeps_order_and_bounds() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            taken.append(i)
            yield i

    results = ahead(lambda i: i * i, items(), jobs=2)
    first = next(results)
    assert (first[0], first[1].result()) == (0, 0)
    assert len(taken) == 3, "one done, two waiting"
    assert [done.result() for _, done in results] == [i * i for i in range(1, 10)]


def test_all_cores_work_at_once_and_results_come_in_order() -> None:
    together = threading.Barrier(min(MOST, cores()), timeout=60)

    def double(i: int) -> int:
        together.wait()  # returns only when as many are at work
        return 2 * i

    count = 3 * together.parties
    assert list(on_cores(double, range(count))) == [2 * i for i in range(count)]


def test_processes_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def threads(jobs: int) -> ThreadPoolExecutor:
        given.append(jobs)
        return ThreadPoolExecutor(jobs)

    monkeypatch.setattr("carseg.ahead.ThreadPoolExecutor", threads)
    monkeypatch.setattr("carseg.ahead.cores", lambda: 6)
    for beside in (1, 2, 4, 12):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(beside))
        assert list(on_cores(abs, range(3))) == [0, 1, 2]
    assert given == [6, 3, 1, 1]


def test_what_goes_wrong_is_told_in_its_turn_and_nothing_more_begins() -> None:
    begun: list[int] = []

    def fail(i: int) -> int:
        begun.append(i)
        if i >= 2:
            raise CarsegError(f"{i}.jpg: is broken")
        return i

    found = on_cores(fail, range(1000))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(CarsegError, match=r"^2\.jpg"):
        next(found)
    assert len(begun) <= 3 + 2 * min(MOST, cores())
