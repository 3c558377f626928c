"""Remarks on a run's answers beside its table: those cut or empty, and where the rules of matching differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from morfi.questions.matching import REGEX
from morfi.questions.relations import named
from morfi.report.tables import percent
from morfi.store import Store
from morfi.store.counts import AnswerCounts
from morfi.store.records import RunKind, RunRecord
from morfi.words import by_number, counted

_FEWEST_POINTS = 0.01  # a difference worth a line
_MOST_NAMED = 5  # relations


def counts_of(store: Store, run: RunRecord) -> list[AnswerCounts]:
    """The counts of each relation of a run of any command that asks questions."""
    if run.kind != RunKind.SWEEP:
        return store.answer_counts(run)
    runs = {row.eval_run_id for row in store.sweep(run.run_id)}
    return _added([row for run_id in sorted(runs) for row in store.answer_counts(store.run(run_id))])


def answer_lines(counts: Sequence[AnswerCounts], match: str, max_tokens: int | None) -> list[str]:
    """The lines under a table: cut and empty answers, and the accuracies where squad and answer differ."""
    lines = []
    n_all, n_cut, n_empty = (
        sum(getattr(row, name) for row in counts) for name in ("n_all", "n_cut", "n_empty")
    )
    n = counted(n_all, "answer")
    if n_cut:
        at = f" at --max-tokens {max_tokens}" if max_tokens else ""
        so = "what is right in more words counts as wrong"
        if match == "contains" or match.startswith(REGEX):
            so = "what would follow is not looked at"
        lines.append(f"{n_cut} of {n} {by_number(n_cut, 'was', 'were')} cut{at}; {so}.")
    if n_empty:
        lines.append(f"{n_empty} of {n} {by_number(n_empty, 'is', 'are')} empty.")
    if match.startswith(REGEX):
        return lines  # of another property than the accepted answers
    rows = [*sorted(counts, key=_gap, reverse=True), *([whole] if (whole := _whole(counts)) else [])]
    differing = [row for row in rows if _gap(row) >= _FEWEST_POINTS]
    if differing:
        told = differing[-1:] if differing[-1] is whole else []
        told += [row for row in differing if row is not whole][:_MOST_NAMED]
        shown = ", ".join(
            f"{named(row.relation)} {percent(row.n_squad / row.n)} and {percent(row.n_answer / row.n)}"
            for row in told
        )
        left = len(differing) - len(told)
        more = f" and {counted(left, 'relation')} more" if left else ""
        lines.append(f"right by --match squad and by --match answer (this run: {match}): {shown}{more}.")
    return lines


def answer_object(counts: Sequence[AnswerCounts]) -> dict[str, Any]:
    """The same for --json: numbers of answers, cut and empty ones, accuracy by both rules."""
    whole = _whole(counts)
    if whole is None:
        return {"n_cut": 0, "n_empty": 0, "accuracy_squad": None, "accuracy_answer": None}
    return {
        "n_cut": whole.n_cut,
        "n_empty": whole.n_empty,
        "accuracy_squad": whole.n_squad / whole.n,
        "accuracy_answer": whole.n_answer / whole.n,
    }


def _gap(row: AnswerCounts) -> float:
    return abs(row.n_squad - row.n_answer) / row.n if row.n else 0.0


def _added(counts: Sequence[AnswerCounts]) -> list[AnswerCounts]:
    """One row for each relation."""
    return [
        _sum(relation, [row for row in counts if row.relation == relation])
        for relation in sorted({row.relation for row in counts})
    ]


def _whole(counts: Sequence[AnswerCounts]) -> AnswerCounts | None:
    """All relations together; None without answers."""
    whole = _sum("all", counts)
    return whole if whole.n else None


def _sum(relation: str, counts: Sequence[AnswerCounts]) -> AnswerCounts:
    names = ("n", "n_correct", "n_squad", "n_answer", "n_all", "n_cut", "n_empty")
    return AnswerCounts(relation, *(sum(getattr(row, name) for row in counts) for name in names))
