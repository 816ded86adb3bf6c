"""`carseg predict`: masks, cut-outs and overlays of many photos."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from tqdm import tqdm

from carseg.ahead import ahead
from carseg.errors import CarsegError, is_lack_of_memory
from carseg.files import check_writable, write_bytes
from carseg.inputs import list_photos, read
from carseg.model import Model
from carseg.outputs import Job, Kinds, missing, plan, refuse_overwriting

STREAM = Path("-")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # of a disk that takes no more


def predict(
    paths: Sequence[str],
    out: Path,
    load: Callable[[], Model],
    kinds: Kinds,
    *,
    d4: bool = False,
    closer: bool = False,
    recursive: bool = False,
    force: bool = False,
    skip_existing: bool = False,
    jobs: int | None = None,
) -> None:
    """Write the outputs of every photo; an unreadable photo does not stop the others.

    A full or read-only disk does.

    Args:
        paths: files, folders, patterns, or "-" alone: standard input to standard output.
        out: the folder to write to.
        load: gives what to predict with, once it is known that there is something to do.
        kinds: outputs to write for each photo, `settle`d by the model.
        d4: as in `Model.predict`.
        closer: likewise.
        recursive: search subfolders, too.
        force: replace existing files, but none in folders that photos come from.
        skip_existing: make only what does not exist yet, whatever made the rest.
        jobs: photos processed at once, each in a thread; None: `Model.jobs_for` them.

    Raises:
        CarsegError: nothing to do, a file that must not be replaced (nothing is written then), or
            photos that could not be done, once all others are.
        OSError: `out` cannot be written to, or a folder of photos not be read.
    """
    if [*paths] == [str(STREAM)]:
        _predict_stream(load, kinds, d4, closer)
        return
    if str(STREAM) in paths:
        raise CarsegError("-: stands for a stream, and for that alone; name files instead")
    # A number depends on which photos are given, so it does not tell whose a file that exists is.
    listed = plan(list_photos(paths, recursive, out), out, kinds, numbered=not skip_existing)
    for path in map(Path, paths):
        if path.is_dir() and out.is_dir() and path.samefile(out):
            raise CarsegError(f"{out}: is the photos' own folder; choose another --out")
    refuse_overwriting(listed, force or skip_existing, kinds.scenery)
    total = len(listed)
    if skip_existing:
        listed = missing(listed)
        print(f"{total - len(listed)} of {total} photos were done already", file=sys.stderr)
        if not listed:
            return
    check_writable(out)  # now, not when hours have been computed
    model = load()
    kinds.settle(model.threshold, model.cleanup)
    failed: list[str] = []
    made: list[Job] = []
    stopped = Event()

    def do(job: Job) -> None:
        photo = read(job.source.read_bytes(), job.source)
        found = model.predict(photo, d4=d4, closer=closer)
        overtaken: list[str] = []
        for kind, content in kinds.make(photo, found, job.targets):
            if stopped.is_set():  # and told that nothing is half written
                return
            if force or not os.path.lexists(job.targets[kind]):
                write_bytes(job.targets[kind], content)
            elif not skip_existing:  # by another command
                overtaken.append(
                    f"{job.targets[kind]}: was made meanwhile, and is left as it is; choose "
                    "another --out, or add --force to replace it"
                )
        if overtaken:
            raise CarsegError("\n".join(overtaken))
        made.append(job)

    jobs = min(jobs, len(listed)) if jobs else model.jobs_for(len(listed))
    results = ahead(do, listed, jobs)
    with model.among(jobs, len(listed)), stopping(results, stopped):
        for job, done in tqdm(results, total=len(listed), unit="photo", disable=None):
            try:
                done.result()
            except (CarsegError, OSError, MemoryError, RuntimeError) as error:
                failed.append(as_line(error, job))
                if isinstance(error, OSError) and error.errno in FULL:
                    break  # each photo after it would say the same
    print(f"{len(made)} of {len(listed)} photos done, in {out}", file=sys.stderr)
    if failed:
        raise CarsegError("\n".join(failed))


def _predict_stream(load: Callable[[], Model], kinds: Kinds, d4: bool, closer: bool) -> None:
    if len(kinds.names) > 1:
        raise CarsegError("-: makes one file of one photo; ask for one kind alone")
    for stream, name in ((sys.stdin, "input"), (sys.stdout, "output")):
        if stream is None:  # closed by who started this
            raise CarsegError(f"-: there is no standard {name}; name files instead")
    model = load()
    kinds.settle(model.threshold, model.cleanup)
    given = sys.stdin.buffer.read()
    try:
        photo = read(given, STREAM)
        ((_, content),) = kinds.make(photo, model.predict(photo, d4=d4, closer=closer))
    except (CarsegError, OSError, MemoryError, RuntimeError) as error:
        raise CarsegError(as_line(error, Job(STREAM, {}))) from error
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def as_line(error: Exception, job: Job) -> str:
    """Return an error as one line that names its file; re-raise it if it is a bug."""
    if isinstance(error, OSError):
        name = error.filename or job.source
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            return f"{name}: a file is in the place of a folder; choose another --out"
        if isinstance(error, FileNotFoundError) and os.path.islink(name):
            return f"{name}: is a link to a file that is gone; put the file there"
        if isinstance(error, PermissionError):
            return f"{name}: may not be read or written; change its permissions"
        if error.errno == errno.ENAMETOOLONG:
            return f"{name}: the name is too long; rename the photo, or ask for one kind alone"
        if error.errno in FULL:
            return f"{name}: {error.strerror}; make room on the disk, or choose another --out"
        if error.errno is None:  # not the system's, but Pillow's
            return f"{name}: is too large for what was asked for ({error}); scale it down"
        return f"{name}: {error.strerror or error}; check the disk, and try again"
    if is_lack_of_memory(error):
        others = "" if job.source == STREAM else ", or lower --jobs"
        return f"{job.source}: takes more memory than there is; scale it down{others}"
    if not isinstance(error, CarsegError):
        raise error
    return str(error)


@contextmanager
def stopping(results: Generator[object, None, None], stopped: Event) -> Iterator[None]:
    """Signal a generator's threads to stop, and close it, however the block ends."""
    try:
        yield
    finally:
        stopped.set()
        results.close()
