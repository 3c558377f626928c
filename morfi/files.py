"""Folders and files that appear whole or not at all, whenever the process is killed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, TypeVar

from morfi.errors import InputError, MorfiError

_PART = ".part-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
T = TypeVar("T")

_noted: ContextVar[set[Path] | None] = ContextVar("noted", default=None)
_kept: ContextVar[dict[Any, tuple[Any, Any]] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def noting_sources() -> Iterator[set[Path]]:
    """The files and folders that `note_source` and `read_once` name during the block."""
    found: set[Path] = set()
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def note_source(path: Path) -> None:
    """Says that what is read at `path`, a file or those directly in a folder, decides what is made of it."""
    found = _noted.get()
    if found is not None:
        found.add(path.absolute())


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """In the block, what `read_once` has read is kept for as long as its files stay the same."""
    token = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(token)


def read_once(path: Path, what: Hashable, read: Callable[[], T], *, beside: Iterable[Path] = ()) -> T:
    """What `read` makes of the file or folder at `path`, or made of it before (`reading_once`).

    `what` tells apart what is made of one path; `beside` are the other files and folders that are read for
    it, also those inside a folder. It is shared from then on: nobody may change it.
    """
    paths = [path, *beside]
    for one in paths:
        note_source(one)
    kept = _kept.get()
    if kept is None:
        return read()
    key, stamps = (what, path.absolute()), stamps_of(paths)
    if key not in kept or kept[key][0] != stamps:
        kept[key] = stamps, read()
    found: T = kept[key][1]
    return found


def stamp_of(path: Path) -> list[int]:
    """What changes when a file does: its size, both times of change and its inode. Raises OSError."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def stamps_of(paths: Iterable[Path]) -> dict[str, list[int]]:
    """The stamp of each path and of the files in each that is a folder; [] for one that is gone."""
    found: dict[str, list[int]] = {}
    for path in sorted(paths):
        inside: list[Path] = []
        with contextlib.suppress(OSError):
            inside = sorted(one for one in path.iterdir() if one.is_file())
        for one in (path, *inside):
            found[str(one)] = []
            with contextlib.suppress(OSError):
                found[str(one)] = stamp_of(one)
    return found


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
        for inside in part.rglob("*"):
            _sync(inside)
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
    it was. Raises OSError where a folder, device, pipe, socket or database has that name, which stays.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    path = Path(os.path.realpath(path))
    if is_database(path):
        raise FileExistsError(errno.EEXIST, "it is a database", str(path))
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


def is_database(path: Path) -> bool:
    """Whether a file is DuckDB's, or the file of changes beside one."""
    if path.suffix == ".wal" and is_database(path.with_suffix("")):
        return True
    try:
        return begins_as_database(path)
    except OSError:
        return False


def begins_as_database(path: Path) -> bool:
    """Whether a file begins as DuckDB's do; raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces the file at `path` by `value` as JSON, in one step and on disk."""
    with whole_file(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    _sync(path.parent)


def unwritten(message: str, error: OSError) -> MorfiError:
    """What a command says where a file could not be written: InputError, but for a full disk."""
    return (MorfiError if error.errno in _FULL else InputError)(message)


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
