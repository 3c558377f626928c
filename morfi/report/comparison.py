"""Two runs side by side."""

from __future__ import annotations

from morfi.questions.relations import named
from morfi.report.tables import aligned, percent
from morfi.runs.compare import Comparison, Difference
from morfi.words import counted


def comparison_table(comparison: Comparison, flips: int = 20) -> str:
    """The table of `morfi compare`, with at most `flips` of the answers that changed."""
    header = ("relation", "n", "a", "b", "b - a", "95 % interval", "gained", "lost", "McNemar p")
    rows = [_difference_cells(row) for row in (*comparison.by_relation, comparison.whole)]
    lines = [
        f"a: {comparison.run_a}, {comparison.ckpt_a} ({comparison.ckpt_sha256_a[:12]})",
        f"b: {comparison.run_b}, {comparison.ckpt_b} ({comparison.ckpt_sha256_b[:12]})",
        *comparison.notes,
        "",
        *aligned([header, *rows], numeric=range(1, 9), rule_before_last=len(rows) > 1),
        "",
    ]
    if comparison.n_only_a or comparison.n_only_b:
        n = counted(comparison.whole.n, "question")
        lines += [
            f"compared: the {n} that both answered; a answered {comparison.n_only_a} more, "
            f"b {comparison.n_only_b}",
            "",
        ]
    shown = comparison.flips[:flips]
    if shown:
        changed = ("", "question", "subject", "accepted", "a answered", "b answered")
        cells = [
            (
                "+" if f.gained else "-",
                f.question_id,
                f.subject,
                f.answers[0],
                f.text_a.strip(),
                f.text_b.strip(),
            )
            for f in shown
        ]
        lines += [
            f"{counted(len(comparison.flips), 'answer')} flipped{_first(len(shown), len(comparison.flips))}:"
        ]
        lines += aligned([changed, *cells])
    return "\n".join(lines).rstrip()


def _difference_cells(row: Difference) -> tuple[str, ...]:
    return (
        named(row.relation or "all"),
        str(row.n),
        percent(row.accuracy_a),
        percent(row.accuracy_b),
        f"{100 * row.difference:+.1f}",
        f"{100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f}",
        str(row.n_gained),
        str(row.n_lost),
        f"{row.p:.2g}",
    )


def _first(n_shown: int, n_all: int) -> str:
    return f", the first {n_shown}" if n_shown < n_all else ""
