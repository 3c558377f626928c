from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from morfi.checkpoints.tensors import read_tensors
from morfi.errors import InputError, MorfiError
from morfi.files import sweep, whole_folder, write_json
from morfi.training.folder import locked, saving


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


def test_a_folder_is_trained_in_by_one_process(tmp_path: Path) -> None:
    elsewhere = locked(tmp_path)
    with locked(tmp_path), pytest.raises(InputError, match=f"another process trains in {tmp_path}"):
        elsewhere.__enter__()
    with locked(tmp_path):
        pass


def test_a_full_disk_is_one_line_with_the_room_that_is_needed(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    with pytest.raises(MorfiError) as caught, saving(folder, 12_300_000):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(caught.value).startswith(
        f"{folder} cannot be written: No space left on device; saving needs 12.3 MB"
    )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{", b"PK\x03\x04 a pickle in a zip file"])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        read_tensors(path, "adapter/")
