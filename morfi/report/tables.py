"""Tables as text and in Markdown, and shares in percent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def percent(share: float | None) -> str:
    """`share` as "57.1 %"; empty for None."""
    return "" if share is None else f"{100 * share:.1f} %"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown; nothing within a cell ends it, or is taken for HTML."""
    every = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(_cell, row))} |" for row in every]


def _cell(plain: str) -> str:
    return " ".join(plain.split()).replace("<", "&lt;").replace("|", "&#124;")


def aligned(
    rows: Sequence[Sequence[str]], *, numeric: Iterable[int] = (), rule_before_last: bool = False
) -> list[str]:
    """The rows as lines of equal columns, a rule under the first; columns in `numeric` stand right.

    An empty cell keeps its column's width. Blanks at the ends of lines are cut.
    """
    right = set(numeric)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "  ".join("-" * width for width in widths)
    lines.insert(1, rule)
    if rule_before_last:
        lines.insert(-1, rule)
    return lines
