"""Opening the store's file: made whole, kept up to date, locked for a moment, refused in a line if unfit."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.errors import InputError, MorfiError, reason_of
from morfi.files import begins_as_database
from morfi.store.schema import bring_up_to_date, newest, version_of
from morfi.terminal import Say

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_FOLDER = "is a folder; give --db the path of a file"
_READ_ONLY = "cannot be written: permission denied or read-only; give another --db"
_NO_DATABASE = "is not a DuckDB database; give another --db"
# DuckDB would otherwise fetch an extension over the network, for one when handed a SQLite file.
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
# A statement from the user reads this database and nothing else: no file, variable or setting.
_CONFINED = _CONFIG | {"enable_external_access": "false", "python_enable_replacements": "false"}
# The connection that a thread holds on to, and the file's path.
_held = threading.local()
# Two connections of one process must agree in configuration, so only one exists at a time.
_gate = threading.Lock()

# Waiting without end is said after so long, and again every minute.
_FIRST_WORD_S = 10.0
_NEXT_WORD_S = 60.0


class Locked(InputError):  # noqa: N818 - a state of the file, that `Work` waits for
    """Another process, or another thread, uses the file; `reason` names file and holder."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


def exists(path: Path) -> bool:
    """Whether the file is there; InputError where that cannot be known or the name cannot be used."""
    try:
        str(path).encode()
        return path.exists()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!r}: not valid Unicode; give another --db") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give another --db") from error


@contextmanager
def reading(
    path: Path, lock_timeout_s: float, say: Say | None = None, *, confined: bool = False
) -> Iterator[DuckDBPyConnection]:
    """A read-only connection for the length of the block; the file is not made.

    One of an older release is brought up to date first; an empty database is read as a store without rows,
    and stays empty. `confined` shuts the connection off from everything
    but this database. `say`, here and below, is told that the file is waited for, and by whom it is held.
    """
    if not exists(path):
        raise InputError(f"{path}: no such database; give --db the file that morfi wrote its runs to")
    with _connection(path, lock_timeout_s, say, read_only=True, confined=confined) as connection:
        version = version_of(path, connection)
        if version == newest():
            yield connection
            return
    if version == 0:
        with contextlib.closing(_open(None, read_only=False, confined=confined)) as connection:
            bring_up_to_date(path, connection)
            yield connection
        return
    with _connection(path, lock_timeout_s, say) as connection:
        bring_up_to_date(path, connection)
    with _connection(path, lock_timeout_s, say, read_only=True, confined=confined) as connection:
        yield connection


@contextmanager
def holding(path: Path, lock_timeout_s: float, say: Say | None = None) -> Iterator[None]:
    """All that this thread reads and writes in the block goes through one connection, opened once."""
    with _connection(path, lock_timeout_s, say) as connection:
        bring_up_to_date(path, connection)
        _held.path, _held.connection = path, connection
        try:
            yield
        finally:
            _held.path = _held.connection = None


@contextmanager
def writing(path: Path, lock_timeout_s: float, say: Say | None = None) -> Iterator[DuckDBPyConnection]:
    """A transaction on the up-to-date file for the length of the block: all of it is kept, or nothing."""
    if not exists(path):
        raise InputError(f"{path}: no such database; it was there when this run began, so put it back")
    with _connection(path, lock_timeout_s, say) as connection:
        bring_up_to_date(path, connection)
        connection.begin()
        try:
            yield connection
            connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # what failed first is what matters
                connection.rollback()
            raise


def prepare(path: Path, lock_timeout_s: float, say: Say | None = None) -> None:
    """Makes the file with the newest schema if it is missing, else brings it up to date.

    A new file appears under its name only when it is complete, so a killed process leaves no half of one.
    """
    if exists(path) or not _create(path, lock_timeout_s):
        with _connection(path, lock_timeout_s, say) as connection:
            bring_up_to_date(path, connection)


def check_writable(path: Path) -> None:
    """Raises InputError where no run could be stored at `path`; makes and changes nothing."""
    if exists(path) and path.is_dir():
        raise InputError(f"{path}: {_FOLDER}")
    _check_folder(path)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            is_fit = not path.exists() or os.access(path, os.W_OK)
    except OSError:
        is_fit = False
    if not is_fit:
        raise InputError(f"{path}: {_READ_ONLY}")


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it or give another --db")


def _create(path: Path, lock_timeout_s: float) -> bool:
    """Whether the complete file is there; False where it must be made in its place."""
    wal = path.with_name(path.name + ".wal")
    if wal.exists():
        raise InputError(
            f"{wal}: belongs to a database that is gone; put {path.name} back or remove this file"
        )
    _check_folder(path)
    part = path.with_name(f".morfi-{secrets.token_hex(8)}.part")  # short: the file's own name may be long
    try:
        with _connection(part, lock_timeout_s) as connection:
            bring_up_to_date(part, connection)
        os.link(part, path)
        return True
    except FileExistsError:
        return False  # another process made it first; its rows must stay
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            return False  # no hard links on this file system
        raise _refusal(path, error) from error
    except MorfiError as error:
        kind = InputError if isinstance(error, InputError) else MorfiError
        raise kind(str(error).replace(str(part), str(path))) from error
    finally:
        for left in (part, part.with_name(part.name + ".wal")):
            with contextlib.suppress(OSError):  # a read-only mount says so even of a file that is not there
                left.unlink(missing_ok=True)


@contextmanager
def _connection(
    path: Path,
    lock_timeout_s: float,
    say: Say | None = None,
    *,
    read_only: bool = False,
    confined: bool = False,
) -> Iterator[DuckDBPyConnection]:
    if getattr(_held, "path", None) == path and not confined:
        with _refusals(path):
            yield _held.connection
        return
    open_it = partial(_open, path, read_only=read_only, confined=confined)
    if not _gate.acquire(timeout=min(lock_timeout_s, threading.TIMEOUT_MAX)):
        raise Locked(f"{path}: another thread of this process has used it for {lock_timeout_s:g} s", "retry")
    try:
        connection = _connect(path, lock_timeout_s, say, open_it)
        try:
            with _refusals(path), _ctrl_c():
                yield connection
        finally:
            connection.close()
    finally:
        _gate.release()


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Raises as one line what DuckDB says in the block of the file, and of tables that are not morfi's."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if _is_about_the_file(error):
            raise _refusal(path, error) from error
        if isinstance(error, duckdb.CatalogException | duckdb.BinderException):
            raise InputError(
                f"{path}: its tables are not those of the schema that it says it has: "
                f"{reason_of(error)}; another morfi made them, so give another --db"
            ) from error
        raise


@contextmanager
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C stays one in the block: DuckDB takes it for itself while a statement runs."""
    try:
        yield
    except RuntimeError as error:
        if "interrupted" in str(error):  # as DuckDB says it
            raise KeyboardInterrupt from error
        raise


def _open(path: Path | None, *, read_only: bool, confined: bool) -> DuckDBPyConnection:
    import duckdb

    config = _CONFINED if confined else _CONFIG
    if path is not None:
        _check_magic(path)
    # Absolute, so that names such as `md:x` stay names of files.
    name = ":memory:" if path is None else str(path.absolute())
    with _ctrl_c():
        connection = duckdb.connect(name, read_only=read_only, config=config)
        try:
            connection.execute("SET enable_progress_bar = false")  # it would be drawn on standard output
            if confined:
                connection.execute("SET lock_configuration = true")
        except BaseException:
            connection.close()  # lest it keeps the file from whoever stores how this ended
            raise
    return connection


def _connect(
    path: Path, lock_timeout_s: float, say: Say | None, open_it: Callable[[], DuckDBPyConnection]
) -> DuckDBPyConnection:
    """The result of `open_it`, once no other process holds the file."""
    import duckdb

    begun = time.monotonic()
    next_word = begun + _FIRST_WORD_S
    pause_s = 0.005
    while True:
        try:
            return open_it()
        except duckdb.Error as error:
            message = str(error)
            if "set lock on file" not in message and "different configuration" not in message:
                raise _refusal(path, error) from error
            waited_s = time.monotonic() - begun
            if waited_s + pause_s > lock_timeout_s:
                raise Locked(
                    f"{path}: locked by {lock_holder(message)} for {lock_timeout_s:g} s",
                    "wait until it ends, stop it, or give another --db",
                ) from error
            if say is not None and begun + waited_s > next_word:
                say(
                    f"{path}: locked by {lock_holder(message)} for {waited_s:.0f} s; waiting until it lets go"
                )
                next_word += _NEXT_WORD_S
        time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads waiting processes
        pause_s = min(2 * pause_s, 0.2)


def _is_about_the_file(error: Exception) -> bool:
    import duckdb

    return isinstance(error, duckdb.IOException | duckdb.FatalException) or "Failed to commit" in str(error)


def lock_holder(message: str) -> str:
    """The holder of a lock: the process id in DuckDB's message, and its command line if readable."""
    if "different configuration" in message:
        return f"another connection in this process (PID {os.getpid()})"
    found = re.search(r"\(?PID (\d+)", message)
    if found is None:
        return "another process"
    pid = found[1]
    program = re.search(r"held in (.+?) \(PID", message)
    command = program[1] if program else ""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        command = " ".join(word.decode("utf-8", "replace") for word in words).strip() or command
    except OSError:
        pass  # another system, or the process is gone: DuckDB's name for it must do
    command = " ".join(command.split())
    return f"PID {pid} ({command[:120]})" if command else f"PID {pid}"


def _check_magic(path: Path) -> None:
    """Raises InputError for a file that is no database: by its ending DuckDB would open it in memory."""
    with contextlib.suppress(OSError):  # DuckDB says what is wrong with it
        if path.stat().st_size > 0 and not begins_as_database(path):
            raise InputError(f"{path}: {_NO_DATABASE}")


def _refusal(path: Path, error: Exception) -> MorfiError:
    """The one line for what DuckDB or the system said about the file; InputError but for a full disk."""
    said = reason_of(error)
    if path.is_dir():
        reason = _FOLDER
    elif "not a valid DuckDB" in said or "sqlite" in said.lower():
        reason = _NO_DATABASE
    elif "version number" in said:
        import duckdb

        said = said.removesuffix(".")
        reason = (
            f"was written by another version of DuckDB than this {duckdb.__version__} ({said}); "
            "`pip install --upgrade duckdb`, or give another --db"
        )
    elif re.search(r"No space left|Disk quota|File too large|not enough (disk )?space", str(error)):
        kept = "what was written before is kept, so free some space and run again"
        return MorfiError(f"{path}: the disk is full; {kept}")
    elif re.search(r"Permission denied|Read-only file system|read-only mode", said):
        reason = _READ_ONLY
    else:
        reason = f"cannot be used as a database: {said}"
    return InputError(f"{path}: {reason}")
