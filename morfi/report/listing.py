"""Lists: the runs of a store, the rows of a query, the entries of the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.cache import Entry
from morfi.report.tables import aligned, percent
from morfi.store.records import RunSummary

if TYPE_CHECKING:
    import pyarrow as pa


def runs_table(summaries: Sequence[RunSummary]) -> str:
    """The table of `morfi runs`, newest first."""
    header = ("run", "checkpoint", "data", "done", "status", "accuracy", "95 % interval", "req/s")
    body = [
        (
            row.run_id,
            row.ckpt,
            row.data,
            f"{row.n_done}/{row.n_planned}",
            row.status,
            percent(row.accuracy),
            f"{percent(row.ci_low)} - {percent(row.ci_high)}",
            f"{row.requests_per_s:.1f}" if row.requests_per_s else "",
        )
        for row in summaries
    ]
    return "\n".join(aligned([header, *body], numeric=(3, 5, 6, 7)))


def arrow_table(rows: pa.Table, limit: int = 200) -> str:
    """At most `limit` rows of a query's result as text."""
    columns = [column.to_pylist() for column in rows.slice(0, limit).columns]  # two may have one name
    cells = [[_cell(value) for value in row] for row in zip(*columns, strict=True)]
    lines = aligned([rows.column_names, *cells])
    if rows.num_rows > limit:
        lines.append(f"({rows.num_rows} rows, the first {limit}; --json gives all)")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    one_line = text.replace("\n", "\\n")
    return one_line if len(one_line) <= 60 else f"{one_line[:57]}..."


def arrow_object(rows: pa.Table) -> dict[str, Any]:
    """The object of a query's result; a repeated column name gets a number, NaN and infinity become null."""
    names: list[str] = []
    for name in rows.column_names:
        free = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names.append(next(candidate for candidate in free if candidate not in names))
    listed = rows.rename_columns(names).to_pylist()
    return {"columns": names, "rows": [_without_nan(row) for row in listed]}


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cache_table(root: Path, entries: Sequence[Entry]) -> str:
    """The table of `morfi cache ls`."""
    header = ("key", "kind", "name", "created", "MB")
    body = [(e.key[:16], e.kind, e.name, e.created, f"{e.bytes / 1e6:.0f}") for e in entries]
    total = sum(entry.bytes for entry in entries) / 1e6
    return "\n".join([*aligned([header, *body], numeric=(4,)), f"{total:.0f} MB in {root}"])
