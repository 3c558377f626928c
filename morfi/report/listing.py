"""Lists: the runs of a store, the rows of a query, the entries of the cache."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from morfi.cache import Entry
from morfi.questions.prompts import ShownPrompt
from morfi.report.tables import aligned, percent
from morfi.store.records import RunSummary
from morfi.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from morfi.store.query import Rows

SHOWN_ROWS = 200  # of a query's result as text


def prompts_text(prompts: Sequence[ShownPrompt]) -> str:
    """The prompts of `--show-prompts`, each under a line that says whose it is."""
    return "\n\n".join(f"--- {one.question_id}{_tokens(one)}\n{one.prompt}" for one in prompts)


def _tokens(prompt: ShownPrompt) -> str:
    return "" if prompt.n_tokens is None else f", {counted(prompt.n_tokens, 'token')}"


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


def rows_table(rows: pa.Table) -> str:
    """A query's result as text: its first `SHOWN_ROWS`, and a word where there are more."""
    shown = rows.slice(0, SHOWN_ROWS)
    columns = [_short(column).to_pylist() for column in shown.columns]  # two may have one name
    cells = [[_cell(value) for value in row] for row in zip(*columns, strict=True)]
    lines = aligned([rows.column_names, *cells])
    if rows.num_rows > SHOWN_ROWS:
        lines.append(f"(the first {SHOWN_ROWS} rows; LIMIT and OFFSET choose others, --json gives all)")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:f}" if isinstance(value, Decimal) else str(value)
    one_line = text.replace("\n", "\\n")
    return one_line if len(one_line) <= 60 else f"{one_line[:57]}..."


def write_rows(rows: Rows, file: IO[bytes], *, ascii_only: bool) -> None:
    """Writes the object of a query's result, a line of JSON, as the rows come.

    A repeated column name gets a number; NaN and infinity become null; numbers keep all their digits.
    """
    names = _different(rows.schema.names)
    keys = [f"{json.dumps(name, ensure_ascii=ascii_only)}: " for name in names]
    head = json.dumps(names, ensure_ascii=ascii_only)
    file.write(f'{{"run_id": null, "columns": {head}, "rows": ['.encode())
    between = ""
    for batch in rows.batches:
        columns = [
            [f"{key}{_json(value, ascii_only)}" for value in _short(column).to_pylist()]
            for key, column in zip(keys, batch.columns, strict=True)
        ]
        lines = ", ".join(f"{{{', '.join(row)}}}" for row in zip(*columns, strict=True))
        if lines:
            file.write(f"{between}{lines}".encode())
            between = ", "
    file.write(b"]}\n")


def _different(given: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in given:
        free = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        names.append(next(candidate for candidate in free if candidate not in names))
    return names


def _json(value: Any, ascii_only: bool) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    if isinstance(value, dict):
        parts = (
            f"{json.dumps(str(k), ensure_ascii=ascii_only)}: {_json(v, ascii_only)}" for k, v in value.items()
        )
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_json(part, ascii_only) for part in value)}]"
    return json.dumps(value, default=str, ensure_ascii=ascii_only)


def _short(column: Any) -> Any:
    """The column, its 32-bit floats as the 64-bit ones of the fewest digits: 0.1, not 0.10000000149011612."""
    import pyarrow as pa

    kind = column.type
    if kind == pa.float32():
        return column.cast(pa.string()).cast(pa.float64())
    if kind == pa.list_(pa.float32()):
        return column.cast(pa.list_(pa.string())).cast(pa.list_(pa.float64()))
    return column


def cache_table(root: Path, entries: Sequence[Entry]) -> str:
    """The table of `morfi cache ls`."""
    header = ("key", "kind", "name", "created", "MB")
    body = [(e.key[:16], e.kind, e.name, e.created, f"{e.bytes / 1e6:.0f}") for e in entries]
    total = sum(entry.bytes for entry in entries) / 1e6
    return "\n".join([*aligned([header, *body], numeric=(4,)), f"{total:.0f} MB in {root}"])
