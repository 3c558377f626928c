"""A user's SQL statement: it reads this store and nothing else, batch by batch, and Ctrl-C ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from morfi.errors import InputError
from morfi.store.readable import readable

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

_READS = ("SELECT", "EXPLAIN", "PRAGMA", "CALL", "MULTI")  # MULTI is how DuckDB sees PIVOT
_BATCH_ROWS = 8192

FoundT = TypeVar("FoundT")


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as they come: nothing is computed before a batch of them is asked for, where SQL allows that."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]

    def whole(self) -> pa.Table:
        """All rows."""
        import pyarrow as pa

        return pa.Table.from_batches(self.batches, self.schema)

    def first(self, limit: int) -> pa.Table:
        """At most `limit` rows."""
        import pyarrow as pa

        found: list[pa.RecordBatch] = []
        left = limit
        while left > 0 and (batch := next(self.batches, None)) is not None:
            found.append(batch.slice(0, left))
            left -= found[-1].num_rows
        return pa.Table.from_batches(found, self.schema)


@contextmanager
def answered(connection: DuckDBPyConnection, sql: str, *, as_text: bool = False) -> Iterator[Rows]:
    """The rows of one reading statement, for the length of the block; InputError for any other statement.

    `as_text` gives values that Python may not hold in full as text (see `readable`).
    """
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"SQL: not valid Unicode at character {error.start + 1}") from error
    with ThreadPoolExecutor(1) as executor:
        statements = _said_in_a_line(lambda: connection.extract_statements(sql))
        if len(statements) != 1:
            raise InputError(f"expected one SQL statement, got {len(statements)}")
        kind = statements[0].type.name
        if kind not in _READS:
            raise InputError(f"{kind} is not allowed: `morfi sql` only reads; use SELECT")
        run = _Interruptible(connection, executor)
        form = readable if as_text else _as_it_is
        reader = run(lambda: form(connection.sql(sql)).to_arrow_reader(_BATCH_ROWS))
        try:
            yield Rows(reader.schema, _batches(reader, run))
        finally:
            reader.close()


def _as_it_is(rows: DuckDBPyRelation) -> DuckDBPyRelation:
    return rows


def streamed(connection: DuckDBPyConnection, sql: str, parameters: list[str]) -> Rows:
    """The rows of a statement of this package."""
    reader = connection.sql(sql, params=parameters).to_arrow_reader(_BATCH_ROWS)
    return Rows(reader.schema, iter(reader))


@dataclass(frozen=True, slots=True)
class _Interruptible:
    """Does a piece of work in a thread: DuckDB in the main thread may not look at Ctrl-C for minutes."""

    connection: DuckDBPyConnection
    executor: ThreadPoolExecutor

    def __call__(self, work: Callable[[], FoundT]) -> FoundT:
        running = self.executor.submit(_said_in_a_line, work)
        try:
            return running.result()
        except KeyboardInterrupt:
            while not running.done():  # again, because the first may come before the statement runs
                self.connection.interrupt()
                wait([running], timeout=0.05)
            raise


def _batches(reader: pa.RecordBatchReader, run: _Interruptible) -> Iterator[pa.RecordBatch]:
    def following() -> pa.RecordBatch | None:
        return next(reader, None)

    while (batch := run(following)) is not None:
        yield batch


def _said_in_a_line(work: Callable[[], FoundT]) -> FoundT:
    import duckdb
    import pyarrow as pa

    try:
        return work()
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # the latter two from a later batch
        raise InputError(f"SQL: {_one_line(str(error))}") from error


def _one_line(message: str) -> str:
    """DuckDB's message without the excerpt of the statement and its caret."""
    return " ".join(message.partition("LINE ")[0].split())
