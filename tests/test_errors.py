"""How a stage ends."""

import argparse
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_carseg
from PIL import Image
from project import ROOT

from carseg.__main__ import command_line
from carseg.errors import CarsegError, hold_interrupts, is_lack_of_memory, run


def test_a_stage_that_works_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    done = []
    run(lambda: done.append(True))
    assert done == [True]
    assert capsys.readouterr() == ("", "")


def test_the_users_faults_are_plain_lines_on_stderr() -> None:
    code = """
from carseg.errors import CarsegError, run
def stage():
    raise CarsegError("a.jpg: has no mask\\nb.jpg: has no mask")
run(stage)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "carseg: a.jpg: has no mask\ncarseg: b.jpg: has no mask\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_what_pillow_warns_of_is_not_shown_as_it_names_no_photo() -> None:
    """Palettes with transparency, say, odd EXIF data, and photos of a hundred megapixels."""

    def convert(picture: Image.Image) -> None:
        picture.convert("RGB")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = Image.new("P", (2, 2))
        picture.info["transparency"] = bytes(256)
        with pytest.raises(UserWarning, match="Transparency"):
            convert(picture)
        run(lambda: convert(picture))
        with pytest.raises(UserWarning, match="ours"):
            run(lambda: warnings.warn("ours", stacklevel=1))


def test_letters_that_a_log_cannot_hold_are_spelt_out() -> None:
    code = "from carseg.errors import run; run(lambda: print('validate: \u8eca'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "validate: \\u8eca\n", "")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Heed Ctrl-C, which who was started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_an_interruption_is_a_line_and_the_shells_code(capsys: pytest.CaptureFixture[str]) -> None:
    def stage() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run(stage)
    assert caught.value.code == 130
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.strip().startswith("carseg: interrupted")


@pytest.mark.usefixtures("_interruptible")
def test_an_interruption_that_an_import_would_swallow_waits_for_its_end() -> None:
    done = []

    def stage() -> None:
        with hold_interrupts():
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                done.append("swallowed")
            done.append("imported")
        done.append("went on")

    with pytest.raises(KeyboardInterrupt):
        stage()
    assert done == ["imported"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_who_ignores_interruptions_goes_on_doing_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with hold_interrupts():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "plots/bce.csv"), "plots/bce.csv: No space left"),
        (
            OSError(30, "Read-only file system", "split"),
            "split: Read-only file system; put that right",
        ),
        (PermissionError(13, "Permission denied"), "carseg: Permission denied; put that right"),
    ],
)
def test_a_disk_that_cannot_be_written_is_a_line(error: OSError, line: str) -> None:
    def stage() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        run(stage)
    assert line in str(caught.value.code)
    assert len(str(caught.value.code).splitlines()) == 1


class OutOfMemoryError(RuntimeError):
    """As torch has one for GPUs."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_lack_of_memory_is_a_line_with_a_remedy(error: Exception) -> None:
    def stage() -> None:
        raise error

    with pytest.raises(SystemExit, match=r"^carseg: memory ran out; .* lower batch_size"):
        run(stage)


def test_a_file_whose_name_speaks_of_memory_is_told_of_as_it_is() -> None:
    assert not is_lack_of_memory(CarsegError("out of memory.jpg: is empty; save it anew"))


def test_commands_without_parameters_name_none_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lack(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("carseg.masks.import_masks", lack)
    with pytest.raises(SystemExit, match=r"^carseg: memory ran out; .* close other programs$"):
        run_carseg("masks", "import", "a.json")


@pytest.mark.parametrize(
    "told",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is ...",
        "Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: unable to "
        "allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
    ],
)
def test_a_process_that_the_system_ended_is_a_line_with_a_remedy(told: str) -> None:
    def stage() -> None:
        raise RuntimeError(told)

    with pytest.raises(SystemExit, match=r"^carseg: a process that prepares .* lower workers"):
        run(stage)


def test_a_bug_in_a_process_that_prepares_photos_is_shown() -> None:
    def stage() -> None:
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nTraceback")

    with pytest.raises(RuntimeError, match="Traceback"):
        run(stage)


def shell(command: str) -> tuple[int, str, str]:
    """Run it with output that waits in a buffer, as most users' does."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    _, output, errors = shell('"$PYTHON" -m carseg --print-completion bash | head -1')
    assert output.startswith("#")
    assert errors == ""
    # Short output is written at the end, when nobody may be there.
    print_slowly = "from carseg.errors import run; run(lambda: input() or print('x'))"
    assert shell(f'(sleep 1; echo) | "$PYTHON" -c "{print_slowly}" | true') == (1, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to try")
def test_output_that_finds_a_full_disk_is_a_line() -> None:
    code = "from carseg.errors import run; run(lambda: print('x'))"
    returned, _, errors = shell(f'"$PYTHON" -c "{code}" > /dev/full')
    assert errors == "carseg: No space left on device; put that right and run it again\n"
    assert returned == 1


@pytest.mark.parametrize("name", ["file", "file/folder"])
def test_a_file_where_a_folder_is_to_be_is_named_with_a_remedy(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / name
    with pytest.raises(SystemExit) as stopped:
        run(lambda: place.mkdir(parents=True, exist_ok=True))
    assert stopped.value.code == (
        f"carseg: {place}: is a file where a folder is to be; name another place"
    )


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed: str, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from tqdm import tqdm
from carseg.errors import run
def stage():
    print('x', flush=True)
    for _ in tqdm([1], disable=None):
        print('y', file=sys.stderr)
    Path({str(tmp_path / "done")!r}).touch()
run(stage)
"""
    (tmp_path / "stage.py").write_text(code)
    returned, output, errors = shell(f'PYTHONPATH=. "$PYTHON" "{tmp_path}/stage.py" {closed}')
    assert (returned, errors) == (0, "" if "2>&-" in closed else "y\n")
    assert output == ("" if ">&- 2" in closed or closed == ">&-" else "x\n")
    assert (tmp_path / "done").exists()


def commands_of(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Give the words of every command, the top level first."""
    yield []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from ([name, *words] for words in commands_of(command))


def test_help_answers_at_once_and_every_command_has_one() -> None:
    code = """
import sys
from carseg.__main__ import main
sys.argv = ["carseg", *sys.argv[1:]]
try:
    main()
finally:
    slow = {"torch", "numpy", "PIL", "pydantic", "dvc"} & set(sys.modules)
    assert not slow, slow
"""
    for words in commands_of(command_line()):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: carseg")


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_a_bug_is_not_hidden(error: type[Exception]) -> None:
    def stage() -> None:
        raise error

    with pytest.raises(error):
        run(stage)


def test_patterns_are_expanded_where_the_shell_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.json", "a.json", "[1].json", "a.xml"):
        Path(name).touch()
    given: list[Path] = []
    monkeypatch.setattr("carseg.masks.import_masks", lambda files, *_: given.extend(files) or [])
    run_carseg("masks", "import", "*.json", "[1].json", "none*", "a.xml")
    assert [path.name for path in given] == [
        "[1].json", "a.json", "b.json", "[1].json", "none*", "a.xml"
    ]  # fmt: skip
