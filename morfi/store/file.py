"""Opening the store's file: made whole, migrated, locked for a moment, and refused in one line if unfit."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.errors import InputError, MorfiError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# DuckDB would otherwise fetch an extension over the network, for one when handed a SQLite file.
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
# A statement from the user reads this database and nothing else: no file, variable or setting.
_CONFINED = _CONFIG | {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "lock_configuration": "true",
}
# The connection that a thread holds on to, and the file's path.
_held = threading.local()
# Two connections of one process must agree in configuration, so only one exists at a time.
_gate = threading.Lock()


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema."""

    version: int
    name: str
    sql: str


def load_migrations() -> tuple[Migration, ...]:
    """All migrations that this program knows, in order: `migrations/0001_name.sql` and on."""
    folder = resources.files("morfi.store") / "migrations"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return tuple(
        Migration(int(f.name[:4]), f.name.removesuffix(".sql")[5:], f.read_text("utf-8")) for f in files
    )


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
def reading(path: Path, lock_timeout_s: float, *, confined: bool = False) -> Iterator[DuckDBPyConnection]:
    """A read-only connection for the length of the block; the file is neither made nor migrated.

    `confined` shuts the connection off from everything but this database.
    """
    if not exists(path):
        raise InputError(f"{path}: no such database; give --db the file that `morfi eval` wrote")
    with _connection(path, lock_timeout_s, read_only=True, confined=confined) as connection:
        version = _schema_version(path, connection)
        if version < (known := load_migrations()[-1].version):
            raise InputError(
                f"{path}: has schema {version}, and this morfi reads schema {known}; "
                "`morfi eval` with this --db upgrades it"
            )
        yield connection


@contextmanager
def holding(path: Path, lock_timeout_s: float) -> Iterator[None]:
    """All that this thread reads and writes in the block goes through one connection, opened once."""
    with _connection(path, lock_timeout_s) as connection:
        migrate(path, connection)
        _held.path, _held.connection = path, connection
        try:
            yield
        finally:
            _held.path = _held.connection = None


@contextmanager
def writing(path: Path, lock_timeout_s: float) -> Iterator[DuckDBPyConnection]:
    """A transaction on the migrated file for the length of the block: all of it is kept, or nothing."""
    if not exists(path):
        raise InputError(f"{path}: no such database; it was there when this run began, so put it back")
    with _connection(path, lock_timeout_s) as connection:
        migrate(path, connection)
        connection.begin()
        try:
            yield connection
            connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # what failed first is what matters
                connection.rollback()
            raise


def prepare(path: Path, lock_timeout_s: float) -> None:
    """Makes the file with the newest schema if it is missing, else migrates it.

    A new file appears under its name only when it is complete, so a killed process leaves no half of one.
    """
    if exists(path) or not _create(path, lock_timeout_s):
        with _connection(path, lock_timeout_s) as connection:
            migrate(path, connection)


def _create(path: Path, lock_timeout_s: float) -> bool:
    """Whether the complete file is there; False where it must be opened and migrated in its place."""
    wal = path.with_name(path.name + ".wal")
    if wal.exists():
        raise InputError(
            f"{wal}: belongs to a database that is gone; put {path.name} back or remove this file"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder {path.parent} does not exist; make it or give another --db")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with _connection(part, lock_timeout_s) as connection:
            migrate(part, connection)
        os.link(part, path)
        return True
    except FileExistsError:
        return False  # another process made it first; its rows must stay
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            return False  # no hard links on this file system
        raise _refusal(path, error) from error
    except MorfiError as error:
        raise InputError(str(error).replace(str(part), str(path))) from error
    finally:
        part.unlink(missing_ok=True)
        part.with_name(part.name + ".wal").unlink(missing_ok=True)


def migrate(
    path: Path, connection: DuckDBPyConnection, migrations: Sequence[Migration] | None = None
) -> None:
    """Brings the schema to the newest of `migrations` (default: this program's), in one transaction.

    Raises InputError for a newer schema and for a DuckDB database that is not morfi's.
    """
    migrations = load_migrations() if migrations is None else migrations
    version = _schema_version(path, connection, migrations[-1].version)
    pending = [migration for migration in migrations if migration.version > version]
    if not pending:
        return
    connection.begin()  # an error below leaves it open, and closing the connection undoes it
    connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_migration "
        "(version INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
    )
    for migration in pending:
        connection.execute(migration.sql)
        connection.execute(
            "INSERT INTO schema_migration VALUES (?, ?, epoch_ms(?::BIGINT))",
            [migration.version, migration.name, int(time.time() * 1000)],
        )
    connection.commit()


def _schema_version(path: Path, connection: DuckDBPyConnection, known: int | None = None) -> int:
    """The file's schema number, 0 for an empty database; refuses a newer one and strangers' databases."""
    import duckdb

    try:
        newest = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migration").fetchall()
    except duckdb.CatalogException:
        tables = connection.execute("SELECT table_name FROM duckdb_tables() ORDER BY ALL").fetchall()
        if tables:
            raise InputError(
                f"{path}: a DuckDB database, but not morfi's (it holds the table {tables[0][0]}); "
                "give another --db"
            ) from None
        return 0
    version = int(newest[0][0])
    known = load_migrations()[-1].version if known is None else known
    if version > known:
        raise InputError(
            f"{path}: has schema {version}, newer than this morfi, which knows up to {known}; "
            "upgrade morfi or give another --db"
        )
    return version


@contextmanager
def _connection(
    path: Path, lock_timeout_s: float, *, read_only: bool = False, confined: bool = False
) -> Iterator[DuckDBPyConnection]:
    import duckdb

    if getattr(_held, "path", None) == path and not confined:
        yield _held.connection
        return
    if not _gate.acquire(timeout=lock_timeout_s):
        raise InputError(
            f"{path}: another thread of this process has used it for {lock_timeout_s:g} s; retry"
        )
    try:
        connection = _connect(path, read_only, _CONFINED if confined else _CONFIG, lock_timeout_s)
        try:
            yield connection
        except duckdb.Error as error:
            if _is_about_the_file(error):
                raise _refusal(path, error) from error
            raise
        except RuntimeError as error:
            # DuckDB takes Ctrl-C for itself while a statement runs, and says so like this.
            if "interrupted" in str(error):
                raise KeyboardInterrupt from error
            raise
        finally:
            connection.close()
    finally:
        _gate.release()


def _connect(
    path: Path,
    read_only: bool,
    config: dict[str, str | bool | int | float | list[str]],
    lock_timeout_s: float,
) -> DuckDBPyConnection:
    import duckdb

    deadline = time.monotonic() + lock_timeout_s
    pause_s = 0.005
    while True:
        try:
            # Absolute, so that names such as `md:x` stay names of files.
            return duckdb.connect(str(path.absolute()), read_only=read_only, config=config)
        except duckdb.Error as error:
            message = str(error)
            if "set lock on file" not in message and "different configuration" not in message:
                raise _refusal(path, error) from error
            if time.monotonic() + pause_s > deadline:
                raise InputError(
                    f"{path}: locked by {lock_holder(message)} for {lock_timeout_s:g} s; "
                    "wait until it ends, stop it, or give another --db"
                ) from error
        time.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - spreads waiting processes
        pause_s = min(2 * pause_s, 0.2)


def _is_about_the_file(error: Exception) -> bool:
    import duckdb

    return isinstance(error, duckdb.IOException | duckdb.FatalException) or "Failed to commit" in str(error)


def lock_holder(message: str) -> str:
    """Who holds the lock: the process id in DuckDB's message and, where it can be read, its command line."""
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


def _refusal(path: Path, error: Exception) -> InputError:
    """The one line for what DuckDB or the system said about the file."""
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if path.is_dir():
        reason = "is a folder; give --db the path of a file"
    elif "not a valid DuckDB" in said or "sqlite" in said.lower():
        reason = "is not a DuckDB database; give another --db"
    elif "version number" in said:
        import duckdb

        said = said.removesuffix(".")
        reason = (
            f"was written by another version of DuckDB than this {duckdb.__version__} ({said}); "
            "`pip install --upgrade duckdb`, or give another --db"
        )
    elif re.search(r"No space left|Disk quota|File too large|not enough (disk )?space", str(error)):
        reason = "the disk is full; what was written before is kept, so free some space and run again"
    elif re.search(r"Permission denied|Read-only file system|read-only mode", said):
        reason = "cannot be written: permission denied or read-only; give another --db"
    else:
        reason = f"cannot be used as a database: {said}"
    return InputError(f"{path}: {reason}")
