"""A run's rows as JSON lines, CSV or Parquet, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from morfi.errors import InputError, nearest

if TYPE_CHECKING:
    import pyarrow as pa

    from morfi.store import Store

FORMATS = ("jsonl", "parquet", "csv")


def export(store: Store, run_id: str, fmt: str, out: Path | None) -> int:
    """Writes the run's rows of the view `samples` to `out` (None: standard output); returns their number.

    `run_id` is as `Store.run` takes it. An existing file is replaced in one step once the new one is
    complete; the store itself is refused. In CSV all text is quoted, `answers` is a JSON list, and truth is
    `true` or `false`.
    """
    if fmt not in FORMATS:
        raise InputError(f'unknown format "{fmt}"; give one of {", ".join(FORMATS)}.{nearest(fmt, FORMATS)}')
    if out is None and fmt == "parquet":
        raise InputError("parquet is binary and needs a file; give --out FILE.parquet")
    target = None if out is None else _checked(out, store.path)
    table = store.samples(store.run(run_id).run_id)
    if target is None:
        _write(table, fmt, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        _replace(table, fmt, target)
    return int(table.num_rows)


def _checked(out: Path, database: Path) -> Path:
    """`out` with links followed, so that the file a link points to is replaced and not the link."""
    target = Path(os.path.realpath(out))
    if target.is_dir():
        raise InputError(f"--out {out} is a folder; give the path of a file")
    if target.exists() and not target.is_file():
        raise InputError(f"--out {out} is not a regular file; leave --out away to write to standard output")
    if not target.parent.is_dir():
        raise InputError(f"--out {out}: the folder {target.parent} does not exist; make it first")
    store_file = os.path.realpath(database)
    if str(target) in (store_file, store_file + ".wal") or (target.exists() and target.samefile(database)):
        raise InputError(f"--out {out} is the database itself; give another file")
    return target


def _replace(table: pa.Table, fmt: str, target: Path) -> None:
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as handle:
            _write(table, fmt, handle)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(target)
    except OSError as error:
        raise InputError(f"--out {target}: cannot be written: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _write(table: pa.Table, fmt: str, handle: IO[bytes]) -> None:
    if fmt == "parquet":
        from pyarrow import parquet

        parquet.write_table(table, handle)
        return
    lines = _json_lines(_rows(table)) if fmt == "jsonl" else _csv_lines(table.column_names, _rows(table))
    for line in lines:
        handle.write(line.encode("utf-8"))


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=4096):
        yield from batch.to_pylist()


def _json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row, ensure_ascii=False) + "\n"


def _csv_lines(names: list[str], rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    line = io.StringIO()
    writer = csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    for values in _csv_values(names, rows):
        writer.writerow(values)
        yield line.getvalue()
        line.seek(0)
        line.truncate()


def _csv_values(names: list[str], rows: Iterable[dict[str, Any]]) -> Iterator[list[Any]]:
    yield list(names)
    for row in rows:
        # JSON for lists and truth values alone: both read back with any JSON reader.
        yield [
            json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else value
            for value in row.values()
        ]
