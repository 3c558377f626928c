"""A run's rows as JSON lines, CSV or Parquet, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from morfi.errors import InputError, nearest
from morfi.files import whole_file
from morfi.terminal import spooled

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.store.query import Rows

FORMATS = ("jsonl", "parquet", "csv")


def export(store: Store, run_id: str, fmt: str, out: Path | None) -> int:
    """Writes the run's rows of the view `samples` to `out` (None: standard output); returns their number.

    `run_id` is as `Store.answered_run` takes it. An existing file is replaced in one step once the new one is
    complete; a database is refused. In CSV all text is quoted, `answers` is a JSON list, and truth is
    `true` or `false`.
    """
    if fmt not in FORMATS:
        raise InputError(f'unknown format "{fmt}"; give one of {", ".join(FORMATS)}.{nearest(fmt, FORMATS)}')
    if out is None and fmt == "parquet":
        raise InputError("parquet is binary and needs a file; give --out FILE.parquet")
    if out is not None and (ending := out.suffix[1:].lower()) in FORMATS and ending != fmt:
        raise InputError(f"--out {out} is named like {ending}, but --format is {fmt}; give --format {ending}")
    full_id = store.answered_run(run_id).run_id  # so that the store is there
    if out is None:
        with spooled() as file, store.sample_rows(full_id) as rows:
            return _write(rows, fmt, file)
    if not (folder := Path(os.path.realpath(out)).parent).is_dir():
        raise InputError(f"--out {out}: the folder {folder} does not exist; make it first")
    with store.sample_rows(full_id) as rows:
        return _replace(rows, fmt, out)


def _replace(rows: Rows, fmt: str, out: Path) -> int:
    try:
        with whole_file(out) as file:
            return _write(rows, fmt, file)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror or error}") from error


def _write(rows: Rows, fmt: str, handle: IO[bytes]) -> int:
    """Writes the rows; returns their number."""
    if fmt == "parquet":
        return _write_parquet(rows, handle)
    n_rows = 0
    if fmt == "csv":
        handle.writelines(_csv_lines([rows.schema.names]))
    for batch in rows.batches:
        found = batch.to_pylist()
        n_rows += len(found)
        handle.writelines(_json_lines(found) if fmt == "jsonl" else _csv_lines(map(_csv_values, found)))
    return n_rows


def _write_parquet(rows: Rows, handle: IO[bytes]) -> int:
    from pyarrow import parquet

    n_rows = 0
    with parquet.ParquetWriter(handle, rows.schema) as writer:
        for batch in rows.batches:
            writer.write_batch(batch)
            n_rows += batch.num_rows
    return n_rows


def _json_lines(rows: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield f"{json.dumps(row, ensure_ascii=False)}\n".encode()


def _csv_lines(rows: Iterable[list[Any]]) -> Iterator[bytes]:
    line = io.StringIO()
    writer = csv.writer(line, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    for values in rows:
        writer.writerow(values)
        yield line.getvalue().encode()
        line.seek(0)
        line.truncate()


def _csv_values(row: dict[str, Any]) -> list[Any]:
    # JSON for lists and truth values alone: both read back with any JSON reader.
    return [
        json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else value
        for value in row.values()
    ]
