"""Files and folders are written whole or not at all."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import contents

from carseg import files
from carseg.files import check_writable, new_directory, read_csv, write_bytes, write_csv, write_json


@pytest.fixture
def no_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(files.os, "replace", fail)


def test_a_file_replaces_the_old_one_in_folders_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file.bin"
    for text in (b"a longer old content", b"new"):
        write_bytes(path, text)
        assert contents(tmp_path) == {"a/b/file.bin": text}


def test_a_file_may_have_the_longest_name_there_is(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 251 + ".png")
    write_bytes(path, b"")
    with new_directory(tmp_path / ("b" * 255)) as folder:
        (folder / "c").touch()
    assert sorted(contents(tmp_path)) == [path.name, "b" * 255 + "/c"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_bytes(path, b"new"),
        lambda path: write_csv(path, ("a", "b"), [(1, 2)]),
        lambda path: write_json(path, {"a": 1}),
    ],
)
@pytest.mark.usefixtures("no_rename")
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full") as caught:
        write(tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file"), "a full disk does not name it"
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)]
)
def test_others_may_read_what_is_written_where_the_user_lets_them(
    umask: int, file: int, folder: int, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"")
        with new_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == folder


def test_a_disk_without_modes_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "chmod", refuse)
    write_bytes(tmp_path / "file", b"new")
    with new_directory(tmp_path / "folder") as fresh:
        (fresh / "inside").write_bytes(b"new")
    assert contents(tmp_path) == {"file": b"new", "folder/inside": b"new"}


def test_json_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": {"d": 0.5, "c": 2}})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": {"c": 2, "d": 0.5}, "b": 1}
    assert [line.strip()[1] for line in text.splitlines() if '"' in line] == ["b", "a", "d", "c"]
    assert text.endswith("}\n")


def test_csv_is_the_same_bytes_everywhere(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", ("name", "value"), [("a,b", 1), ("ü", 0.5)])
    assert (tmp_path / "x.csv").read_bytes() == 'name,value\n"a,b",1\nü,0.5\n'.encode()
    assert read_csv(tmp_path / "x.csv") == [
        {"name": "a,b", "value": "1"},
        {"name": "ü", "value": "0.5"},
    ]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "a/target"
    target.mkdir(parents=True)
    (target / "old").write_bytes(b"old")
    with new_directory(target) as fresh:
        (fresh / "new").write_bytes(b"new")
        assert contents(target) == {"old": b"old"}
    assert contents(tmp_path) == {"a/target/new": b"new"}
    assert os.listdir(tmp_path / "a") == ["target"]


@pytest.mark.usefixtures("no_rename")
def test_a_folder_that_cannot_take_its_place_leaves_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/old").write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), new_directory(tmp_path / "target"):
        pass
    assert contents(tmp_path) == {"target/old": b"old"}


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_bytes(folder / "file", b""),
        check_writable,
        lambda folder: new_directory(folder / "file").__enter__(),
    ],
)
def test_a_folder_that_takes_no_files_is_named(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", f"{tmp_path}/.part.x")

    monkeypatch.setattr(files.tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "mkdir", lambda self, **_: refuse() if ".part" in self.name else None)
    with pytest.raises(PermissionError) as caught:
        write(tmp_path)
    assert caught.value.filename in (str(tmp_path), str(tmp_path / "file"))


@pytest.mark.parametrize("place", ["{fresh}/Image/a.jpg", "{fresh}"])
@pytest.mark.parametrize("relative", [False, True])
def test_what_fails_to_be_written_into_a_new_folder_is_named_where_it_is_to_be(
    place: str, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = Path("target") if relative else tmp_path / "target"

    def fill() -> None:
        with new_directory(target) as fresh:
            # As `shutil.copyfile` tells of a full disk: the source first.
            raise OSError(28, "No space left", "a.jpg", None, place.format(fresh=fresh))

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.filename == place.format(fresh=target)
    assert os.listdir(tmp_path) == []


def test_errors_of_other_files_are_left_as_they_are(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError) as caught,
        new_directory(tmp_path / "target"),
    ):
        (tmp_path / "missing.jpg").read_bytes()
    assert caught.value.filename == str(tmp_path / "missing.jpg")


def test_a_file_where_a_folder_is_to_be_is_named_and_left(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    with pytest.raises(NotADirectoryError) as caught, new_directory(tmp_path / "target"):
        pass
    assert caught.value.filename == str(tmp_path / "target")
    assert contents(tmp_path) == {"target": b"mine"}


def test_an_interrupt_between_its_two_renames_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/old").write_bytes(b"old")
    rename = os.replace
    done: list[bool] = []

    def interrupt(source: Path, target: Path) -> None:
        rename(source, target)
        if not done:
            done.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "target"):
        pass
    assert contents(tmp_path) == {"target/old": b"old"}
    assert os.listdir(tmp_path) == ["target"]


def test_a_folder_that_can_be_made_and_written_to_is_not_made_yet(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b")
    check_writable(tmp_path)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        check_writable(tmp_path / "file/b")


def test_a_folder_on_a_drive_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where not even the root of its path is there."""
    monkeypatch.setattr(files.os.path, "lexists", lambda path: False)
    with pytest.raises(FileNotFoundError) as caught:
        check_writable(Path("gone/masks"))
    assert caught.value.filename == str(Path("gone/masks"))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_that_fails_to_be_filled_leaves_the_old_one(
    error: type[BaseException], tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").write_bytes(b"old")

    def fill() -> None:
        with new_directory(target) as fresh:
            (fresh / "half").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fill()
    assert contents(tmp_path) == {"target/old": b"old"}
    assert os.listdir(tmp_path) == ["target"]
