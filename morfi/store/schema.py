"""The schema of the store: made from `schema.sql` and `views.sql`, and changed by numbered migrations."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

from morfi.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

# The number of `schema.sql`, which until the first release goes up with every change of that file, and of the
# names of the settings that runs are stored with; never after. What has a smaller one is not read.
FIRST = 11

# Everything that somebody made in a database, by kind and name.
_HELD = (
    " UNION ALL ".join(
        f"SELECT '{kind}', {kind}_name FROM duckdb_{kind}s() WHERE NOT internal AND {kind}_name <> 'main'"
        for kind in ("table", "view", "schema", "function", "type")
    )
    + " UNION ALL SELECT 'sequence', sequence_name FROM duckdb_sequences()"
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered change of the tables, as SQL."""

    version: int
    name: str
    sql: str


# From the first release on: each change of the tables since, numbered from FIRST + 1 without a gap.
MIGRATIONS: tuple[Migration, ...] = ()


def newest() -> int:
    """The number of the schema that this program works with."""
    return MIGRATIONS[-1].version if MIGRATIONS else FIRST


def version_of(path: Path, connection: DuckDBPyConnection) -> int:
    """The number of the file's schema, 0 for an empty database.

    Raises InputError for a newer schema, for one from before the first release, and for a DuckDB database
    that is not morfi's.
    """
    import duckdb

    try:
        found = connection.execute(
            "SELECT coalesce(max(version::INTEGER), 0) FROM schema_migration"
        ).fetchall()
    except (duckdb.CatalogException, duckdb.BinderException, duckdb.ConversionException):
        held = connection.execute(_HELD).fetchall()
        if held:
            kind, name = held[0]
            raise InputError(
                f"{path}: a DuckDB database, but not morfi's (it holds the {kind} {name}); give another --db"
            ) from None
        return 0
    version = int(found[0][0])
    if version < FIRST:
        raise InputError(
            f"{path}: made by an unreleased morfi (schema {version}; this one reads {FIRST} and newer); "
            "give another --db and run again there"
        )
    if version > newest():
        raise InputError(
            f"{path}: has schema {version}, newer than this morfi, which knows up to {newest()}; "
            "upgrade morfi or give another --db"
        )
    return version


def bring_up_to_date(path: Path, connection: DuckDBPyConnection) -> None:
    """Gives the file the newest schema, in one transaction; refuses what `version_of` refuses."""
    version = version_of(path, connection)
    if version == newest():
        return
    connection.begin()  # an error below leaves it open, and closing the connection undoes it
    if version == 0:
        connection.execute(
            "CREATE TABLE schema_migration "
            "(version INTEGER PRIMARY KEY, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
        )
    for step in (Migration(FIRST, "schema", _sql("schema.sql")), *MIGRATIONS):
        if step.version > version:
            connection.execute(step.sql)
            connection.execute(
                "INSERT INTO schema_migration VALUES (?, ?, epoch_ms(?::BIGINT))",
                [step.version, step.name, int(time.time() * 1000)],
            )
    connection.execute(_sql("views.sql"))
    connection.commit()


def _sql(name: str) -> str:
    return (resources.files("morfi.store") / name).read_text("utf-8")
