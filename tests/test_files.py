from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest

from morfi.files import sweep, whole_file, whole_folder, write_json


def test_a_folder_appears_with_its_last_file_only(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with whole_folder(path) as part:
        (part / "a").write_text("1")
        assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert (path / "a").read_text() == "1"


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new"
    for number in range(2):
        with whole_folder(path) as part:
            (part / str(number)).write_text("")
    assert [p.name for p in path.iterdir()] == ["1"]
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


def test_an_error_leaves_the_folder_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with whole_folder(path) as part:
        (part / "old").write_text("")
    with contextlib.suppress(KeyboardInterrupt), whole_folder(path) as part:
        (part / "half").write_text("")
        raise KeyboardInterrupt
    assert [p.name for p in path.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_file_that_cannot_be_written_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / ("f" * 250)  # close to the longest name there can be
    with whole_file(path) as file:
        file.write(b"old")
    assert path.read_bytes() == b"old"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif failing == "replace":
        monkeypatch.setattr(Path, "replace", full)

    def write() -> None:
        with whole_file(path) as file:
            file.write(b"new")
            if failing == "write":
                full()

    with pytest.raises(OSError, match="full"):
        write()
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def test_what_is_no_regular_file_stays_what_it_is(tmp_path: Path) -> None:
    pipe, listener, folder = tmp_path / "pipe", tmp_path / "socket", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    links = {one: tmp_path / f"to-{one.name}" for one in (pipe, folder, Path("/dev/null"), Path("/dev/full"))}
    for target, link in links.items():
        link.symlink_to(target)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(listener))
        before = sorted(tmp_path.iterdir())
        for path in (pipe, listener, folder, *links.values(), Path(f"/proc/self/fd/{bound.fileno()}")):
            mode = path.stat().st_mode
            with pytest.raises(OSError, match=r"it is (a folder|not a regular file)"), whole_file(path):
                pytest.fail("it was opened")
            assert path.stat().st_mode == mode
        assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["m.duckdb", "m.duckdb.wal", "link", "other-ending.html"])
def test_a_database_is_never_replaced(tmp_path: Path, name: str) -> None:
    database = tmp_path / ("other-ending.html" if name.endswith("html") else "m.duckdb")
    database.write_bytes(bytes(8) + b"DUCK" + bytes(100))
    (tmp_path / "m.duckdb.wal").write_bytes(b"changes")
    (tmp_path / "link").symlink_to(database)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="it is a database"), whole_file(tmp_path / name) as file:
        file.write(b"new")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    file.parent.mkdir()
    link.symlink_to("there/file")
    for content in (b"new", b"newer"):  # where the file is not there yet, and where it is
        with whole_file(link) as opened:
            opened.write(content)
        assert link.is_symlink()
        assert file.read_bytes() == content


def test_a_json_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert path.read_text() == '{\n "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".part-epoch-01").mkdir()
    (tmp_path / ".part-epoch-01" / "half").write_text("")
    (tmp_path / ".part-finished.json").write_text("")
    (tmp_path / "epoch-01").mkdir()
    (tmp_path / "notes.txt").write_text("")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch-01", "notes.txt"]
