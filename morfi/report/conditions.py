"""The conditions of a series, a line each, as `morfi conditions check` answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from morfi.conditions.listing import ConditionFiles
from morfi.conditions.series import Series
from morfi.report.tables import aligned
from morfi.words import counted


def conditions_table(series: Series, rows: Sequence[ConditionFiles]) -> str:
    """The table of `rows`, under a line about the series."""
    levels = {row.level for row in rows}
    head = (
        f"{counted(len(rows), 'condition')} of {counted(len(levels), 'level')} of {series.varied.label}, on "
        f"{series.base.name} in {series.base.dtype} (sha256 {series.base.sha256[:12]})"
    )
    body = [
        (
            f"{row.level}",
            f"{row.seed}",
            row.epochs,
            row.kind,
            row.sha256[:12],
            f"{row.n_bytes:,}",
            name,
        )
        for row, name in zip(rows, _names(rows), strict=True)
    ]
    header = ("level", "seed", "epochs", "kind", "sha256", "bytes", "checkpoint")
    return "\n".join([head, "", *aligned([header, *body], numeric=(0, 1, 5))])


def _names(rows: Sequence[ConditionFiles]) -> list[str]:
    """The names of checkpoints, and where several have one as much of their paths as tells them apart."""
    n_named = Counter(row.name for row in rows)
    parts = {row.path: Path(row.path).parts for row in rows if n_named[row.name] > 1}
    n = 1
    while len({one[-n:] for one in parts.values()}) < len(set(parts.values())):
        n += 1
    return [str(Path(*parts[row.path][-n:])) if n_named[row.name] > 1 else row.name for row in rows]


def conditions_object(series: Series, rows: Sequence[ConditionFiles]) -> dict[str, Any]:
    """The object of `morfi conditions check --json`."""
    return {
        "property": series.varied.name,
        "unit": series.varied.unit,
        "base": series.base.name,
        "base_sha256": series.base.sha256,
        "dtype": series.base.dtype,
        "conditions": [asdict(row) for row in rows],
    }
