"""Errors that are the user's to fix, and the one place where they are shown."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import ModuleType

OUT_OF_MEMORY = (  # what torch, CUDA's libraries, ONNX Runtime and OpenVINO say
    "DefaultCPUAllocator",
    "out of memory",
    "ALLOC_FAILED",
    "Failed to allocate memory",
    "bad_alloc",
)
# How torch says that a process that prepares photos was ended, or could not hand over a batch.
OF_WORKERS = ("DataLoader worker (pid", "unable to allocate shared memory")
LIGHTER = "lower batch_size or image_size, or take model: u2netp"
TOLD = 10  # lines of a kind, at most
NAMED = 10  # names in a line, at most
IS_FOLDER = "is a folder where a file is to be; move it away"


class CarsegError(Exception):
    """Something the user can fix: names the file or parameter, the fault and the remedy."""


def run(stage: Callable[[], None], lighter: str = LIGHTER) -> None:
    """Run a stage; report what its user can fix as plain lines on stderr, with exit code 1.

    `lighter` says what takes less memory.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of files may hold letters that the encoding of a log lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Pillow's name no file: of more than 89 megapixels, which phones make (beyond 179 it refuses,
    # and we tell), of odd metadata, of palettes with transparency.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if sys.stderr is None:  # as in a service; print would take standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lasts
    try:
        try:
            stage()
        finally:
            _flush_output()  # here, as a full disk or a closed pipe at exit is nobody's to catch
    except CarsegError as error:
        sys.exit("\n".join(f"carseg: {line}" for line in str(error).splitlines()))
    except BrokenPipeError:
        # Who read our output, `head` say, has seen enough.
        _drop_output()
        sys.exit(1)
    except (FileExistsError, NotADirectoryError) as error:
        sys.exit(f"carseg: {error.filename}: is a file where a folder is to be; name another place")
    except OSError as error:
        # A full or read-only disk, a lost network drive: nothing that code could fix.
        try:
            _flush_output()
        except OSError:
            _drop_output()
        where = f"{error.filename}: " if error.filename else ""
        # Without a name it may be standard output, which may have got a part.
        left = ", nothing was left half written" if error.filename else ""
        sys.exit(f"carseg: {where}{error.strerror or error}; put that right and run it again{left}")
    except (MemoryError, RuntimeError) as error:
        if any(words in str(error) for words in OF_WORKERS):  # else it is what went wrong in one
            sys.exit(
                "carseg: a process that prepares photos ran out of shared memory, or was ended by "
                "the system for want of memory; lower workers or batch_size in params.yaml, or "
                "give a container more shared memory (--shm-size)"
            )
        if not is_lack_of_memory(error):
            raise
        sys.exit(
            f"carseg: memory ran out; where photos are very large, scale them down, else {lighter}"
        )
    except KeyboardInterrupt:
        _end_at_once_when_asked_again()
        print("\ncarseg: interrupted; nothing was left half written", file=sys.stderr)
        sys.exit(130)


def warn(line: str) -> None:
    """Tell of what may be a fault, and go on."""
    print(f"carseg: warning: {line}", file=sys.stderr)


def warn_of(lines: Iterable[str], what: str) -> None:
    """Warn with the first `TOLD` lines, then tell how many more `what`, if any."""
    rest = iter(lines)
    for line in islice(rest, TOLD):
        warn(line)
    if more := sum(1 for _ in rest):
        warn(f"and {more} more {what}")


def named(names: Sequence[str]) -> str:
    """Join names for a line, the first `NAMED` of them; an ellipsis tells of more."""
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def is_lack_of_memory(error: Exception) -> bool:
    """Check for lack of memory without importing torch, which has no single class for it."""
    if isinstance(error, CarsegError):  # whose text may have a file's name
        return False
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return by_type or any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def as_memory_error() -> Iterator[None]:
    """Convert an engine's lack of memory, which may have no common base, to a MemoryError."""
    try:
        yield
    except Exception as error:
        if is_lack_of_memory(error):
            raise MemoryError(str(error)) from error
        raise


def _end_at_once_when_asked_again() -> None:
    """Make the next Ctrl-C end the process without waiting for threads, and without traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # The system's handler: one in Python runs only between bytecodes, so a Ctrl-C just before
        # the wait for threads, at exit, would be handled after it.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _flush_output() -> None:
    if sys.stdout is not None:  # a service may have none
        sys.stdout.flush()


def _drop_output() -> None:
    """Let Python not try once more, at exit, to write what could not be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Let Ctrl-C wait for the end of a block of imports, in which some packages swallow it."""
    held = []
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else it is ignored, or somebody else's
        signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise KeyboardInterrupt


def import_optional(module: str, wanted_by: str) -> ModuleType:
    """Import an optional package.

    Raises:
        CarsegError: it is not installed, or cannot be loaded.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        if not isinstance(error, ModuleNotFoundError) or (error.name or package) != package:
            why = " ".join(str(error).split())
            raise CarsegError(
                f"{wanted_by}: the package {package} cannot be loaded ({why}); install it anew"
            ) from error
        raise CarsegError(
            # Not by name: PyPI may have something else of that name.
            f"{wanted_by}: needs the package {package}; run pip install -e '.[export]' in the "
            "project's folder"
        ) from error
