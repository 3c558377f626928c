"""Folders and files that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_PART = ".part-"


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` that takes its name, on disk, when the block ends without an error.

    A folder that was there before is replaced. After an error `path` is what it was.
    """
    part, replaced = path.with_name(f"{_PART}{path.name}"), path.with_name(f"{_PART}old-{path.name}")
    _remove(part)
    _remove(replaced)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.iterdir():
            _sync(file)
        _sync(part)
        if path.exists():
            path.rename(replaced)
        part.rename(path)
        _sync(path.parent)
    finally:
        _remove(part)
        _remove(replaced)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A hidden file beside `path`, open for writing, that takes its name when the block ends without error.

    A file that was there before is replaced, in one step; a link is followed. After an error `path` is what
    it was. Raises OSError where a folder, device, pipe or socket has that name, which stays.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    path = Path(os.path.realpath(path))
    part = path.with_name(f"{_PART}{secrets.token_hex(8)}")  # short: the file's own name may be long
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a read-only mount says so even of a file that is not there
            part.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces the file at `path` by `value` as JSON, in one step and on disk."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    _sync(path.parent)


def sweep(folder: Path) -> None:
    """Deletes what a killed process left unfinished in `folder`."""
    for path in folder.glob(f"{_PART}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical_sha256(value: object) -> str:
    """The sha256 of `value` as JSON with sorted keys and no blanks."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
