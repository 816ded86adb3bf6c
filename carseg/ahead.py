"""Mapping in threads, only as far ahead as keeps memory flat."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

MOST = 8  # photos in work at once, as each of them takes memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], jobs: int
) -> Generator[tuple[Item, Future[Result]], None, None]:
    """Map in threads, in order; at most `jobs` results are queued, so that memory stays flat.

    Closing it early cancels calls that have not started and does not wait for the others.
    """
    pool = ThreadPoolExecutor(jobs)
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > jobs:
                yield waiting.popleft()
        yield from waiting
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def on_cores(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map in order, a thread per core up to `MOST`: Pillow releases the GIL as it reads and scales.

    Processes that torchrun started on this machine divide its cores, as each of them calls this.

    Args:
        function: applied to each item; its exception is raised when its result is due.
        items: consumed as needed.
    """
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    with closing(ahead(function, items, min(MOST, max(1, cores() // beside)))) as found:
        for _, result in found:
            yield result.result()


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
