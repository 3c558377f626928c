"""All rows that the store has of a run: a Parquet file for each table, and what they are of as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.store.records import RunKind

if TYPE_CHECKING:
    import pyarrow as pa

    from morfi.store import Store
    from morfi.store.query import Rows

_TABLES = (
    "SELECT c.table_name FROM duckdb_columns() c JOIN duckdb_tables() t USING (table_oid) "
    "WHERE c.column_name = 'run_id' AND NOT c.internal AND c.table_name <> 'lease' ORDER BY c.table_name"
)
# Of the questions of a data set, which runs share, those that these runs have asked, mixed or steered on.
_QUESTIONS = """
    SELECT q.* FROM question q WHERE (q.data_sha256, q.question_id) IN (
        SELECT (r.data_sha256, u.question_id) FROM run r JOIN (
            SELECT run_id, question_id FROM asked
            UNION ALL SELECT run_id, question_id FROM completion
            UNION ALL SELECT run_id, question_id FROM mixture
            UNION ALL SELECT run_id, question_id FROM steered_answer
        ) u USING (run_id) WHERE r.run_id IN ({runs})
    ) ORDER BY ALL
"""


def write_tables(store: Store, run_id: str, folder: Path) -> str:
    """Writes TABLE.parquet for each table with rows of the run, and run.json; returns the run's id in full.

    A sweep's are with those of the evaluations that it has made. Times are in UTC and say so, lists stay
    lists, and JSON is text.
    """
    run = store.run(run_id)
    runs = [run.run_id]
    if run.kind == RunKind.SWEEP:
        runs += sorted({row.eval_run_id for row in store.sweep(run.run_id)} - {run.run_id})
    named = ", ".join(f"'{one}'" for one in runs)
    queries = {
        name: f"FROM {name} WHERE run_id IN ({named}) ORDER BY ALL"
        for name in store.query(_TABLES)["table_name"].to_pylist()
    } | {"question": _QUESTIONS.format(runs=named)}
    n_rows = {}
    for name, query in sorted(queries.items()):
        with store.query_rows(query) as rows:
            n_rows[name] = _write(rows, folder / f"{name}.parquet")
    about = {
        "run_id": run.run_id,
        "kind": run.kind,
        "created_at": run.created_at.isoformat(),
        "runs": runs,
        "checkpoint": run.ckpt,
        "data": run.data,
        "data_sha256": run.data_sha256,
        "settings": dict(run.config),
        "n_rows": {name: n for name, n in n_rows.items() if n},
    }
    text = json.dumps(about, indent=1, ensure_ascii=False)
    (folder / "run.json").write_text(f"{text}\n", encoding="utf-8")
    return run.run_id


def _write(rows: Rows, path: Path) -> int:
    """Writes the rows, if there are any; returns their number."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([pa.field(one.name, _type(one.type), one.nullable) for one in rows.schema])
    batch = next(rows.batches, None)
    if batch is None or not batch.num_rows:
        return 0
    n_rows = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch is not None:
            writer.write_batch(_cast(batch, schema))
            n_rows += batch.num_rows
            batch = next(rows.batches, None)
    return n_rows


def _type(kind: pa.DataType) -> Any:
    """What a column is written as: the store's times are UTC without a zone, and its JSON is text."""
    import pyarrow as pa

    if pa.types.is_timestamp(kind) and kind.tz is None:
        return pa.timestamp(kind.unit, tz="UTC")
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    columns: Sequence[Any] = [
        (one.storage if isinstance(one, pa.ExtensionArray) else one).cast(field.type)
        for one, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
