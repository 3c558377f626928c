"""The folder of a training: locked for one process, and what is said when it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from morfi.errors import InputError, MorfiError

_LOCK = ".lock"


@contextlib.contextmanager
def saving(folder: Path, n_bytes: int) -> Iterator[None]:
    """Makes an OSError of the block a MorfiError that names the folder and the room that saving needs."""
    try:
        yield
    except OSError as error:
        parent = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(parent).free
        raise MorfiError(
            f"{folder} cannot be written: {error.strerror or error}; saving needs {n_bytes / 1e6:.1f} MB and "
            f"{free / 1e6:.1f} MB are free there; make room or make it writable, then give the same command: "
            "what was saved before is whole, and the training goes on from it"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; raises InputError where another one trains there."""
    with (folder / _LOCK).open("a") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"another process trains in {folder}; wait for it, or train in another folder"
            ) from error
        except OSError as error:
            # A file system without locks: that only one process trains is then up to the user.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
        yield
