"""A store of an older schema, read as one of the newest: its tables behind views, the file left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from duckdb import DuckDBPyConnection

_COLUMNS = (
    "SELECT table_name, column_name, data_type, column_default FROM duckdb_columns() "
    "WHERE database_name = ? "
    "AND table_name IN (SELECT table_name FROM duckdb_tables() WHERE database_name = ?) "
    "ORDER BY table_name, column_index"
)


def attach(connection: DuckDBPyConnection, path: Path, migrations: Sequence[str]) -> None:
    """Makes the newest schema in the empty `connection`, over the rows of the file at `path`.

    Tables that the file does not have are empty; a column that it does not have holds its default, or NULL.
    """
    quoted = str(path.absolute()).replace("'", "''")
    connection.execute(f"ATTACH '{quoted}' AS older (READ_ONLY)")
    for statements in migrations:
        connection.execute(statements)
    (here,) = connection.execute("SELECT current_database()").fetchall()[0]
    theirs = {(table, column) for table, column, *_ in _columns(connection, "older")}
    tables: dict[str, list[str]] = {}
    for table, column, kind, default in _columns(connection, here):
        given = (table, column) in theirs
        shown = f'"{column}"' if given else f'({default or "NULL"})::{kind} AS "{column}"'
        tables.setdefault(table, []).append(shown)
    for table in sorted({table for table, _ in theirs} & tables.keys()):
        connection.execute(f'DROP TABLE "{table}"')
        chosen = ", ".join(tables[table])
        connection.execute(f'CREATE VIEW "{table}" AS SELECT {chosen} FROM older.main."{table}"')
    if theirs:
        connection.execute("CREATE VIEW schema_migration AS FROM older.main.schema_migration")


def _columns(connection: DuckDBPyConnection, database: str) -> list[tuple[str, str, str, str | None]]:
    return connection.execute(_COLUMNS, [database, database]).fetchall()
