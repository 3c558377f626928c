from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from morfi.checkpoints.tensors import read_tensors
from morfi.errors import InputError, MorfiError
from morfi.training.folder import locked, saving


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
