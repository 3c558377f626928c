"""A user's columns of types that neither Python nor Arrow holds in full, as DuckDB's own text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation

# Moments reach beyond Python's years 1 to 9999, 24:00:00 is no time there, and zones of times, bits and
# numbers of more than 38 digits become other values on their way through Arrow.
_AS_TEXT = frozenset(
    (
        *("date", "time", "time with time zone", "time_ns", "timestamp", "timestamp with time zone"),
        *("timestamp_s", "timestamp_ms", "timestamp_ns", "timestamptz_ns", "interval"),
        *("bit", "bignum", "uhugeint", "geometry"),
    )
)
_NESTED = ("list", "array", "struct", "map", "union", "tuple")


def readable(rows: DuckDBPyRelation) -> DuckDBPyRelation:
    """`rows` with text for moments, intervals, bits and numbers of more than 38 digits, nested ones too."""
    kinds = [_text_form(kind) for kind in rows.types]
    if not any(kinds):
        return rows
    columns = [
        f"{f'CAST(#{number} AS {kind})' if kind else f'#{number}'} AS {_quoted(name)}"
        for number, (name, kind) in enumerate(zip(rows.columns, kinds, strict=True), 1)
    ]
    return rows.project(", ".join(columns))


def _text_form(kind: Any) -> str | None:
    """The type that a column of this type is cast to; None for one that stays as it is."""
    if kind.id in _AS_TEXT:
        return "VARCHAR"
    inside = kind.children if kind.id in _NESTED else []
    parts = [(name, part) for name, part in inside if not isinstance(part, int)]
    if not any(_text_form(part) for _, part in parts):
        return None
    forms = [(name, _text_form(part) or str(part)) for name, part in parts]
    whole = {
        "list": f"{forms[0][1]}[]",
        "array": f"{forms[0][1]}[{dict(inside).get('size')}]",
        "struct": f"STRUCT({', '.join(f'{_quoted(name)} {form}' for name, form in forms)})",
        "map": f"MAP({', '.join(form for _, form in forms)})",
    }
    return whole.get(kind.id, "VARCHAR")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
