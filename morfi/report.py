"""What a person reads of a run: tables for the terminal, and the object that --json prints."""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.cache import Entry
from morfi.compare import Comparison, Difference
from morfi.matching import answer_in_subject, majority_answer
from morfi.store import Store
from morfi.store.records import AttemptRecord, RelationAccuracy, RunRecord, RunSummary

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class RelationReport:
    """A relation's accuracy beside the two confounds that make a fact look known."""

    accuracy: RelationAccuracy
    majority_answer: str
    majority_share: float  # accuracy of always giving the relation's most frequent answer
    in_subject_share: float  # questions whose answer stands in the subject's name


@dataclass(frozen=True, slots=True)
class RunReport:
    """All that is reported of an evaluation."""

    run: RunRecord
    summary: RunSummary
    relations: tuple[RelationReport, ...]  # the last is the whole run


def run_report(store: Store, run_id: str) -> RunReport:
    """The report of a stored run; `run_id` as in `Store.run`."""
    run = store.run(run_id)
    questions = store.questions(run.run_id)
    rows: list[RelationReport] = []
    for accuracy in store.accuracies(run.run_id):
        asked = [q for q in questions if accuracy.relation in (None, q.relation)]
        majority = majority_answer(asked)
        in_subject = sum(map(answer_in_subject, asked)) / len(asked)
        if accuracy.relation is None:
            # A constant answer for each relation is the stronger baseline of the whole.
            share = sum(row.majority_share * row.accuracy.n for row in rows) / len(asked)
            rows.append(RelationReport(accuracy, "", share, in_subject))
        else:
            rows.append(RelationReport(accuracy, majority.answer, majority.share, in_subject))
    return RunReport(run, store.summary(run.run_id), tuple(rows))


def run_table(report: RunReport, database: Path) -> str:
    """The table that `morfi eval` ends with."""
    header = ("relation", "n", "accuracy", "95 % interval", "majority", "in subject", "majority answer")
    body = [
        (
            row.accuracy.relation or "all",
            str(row.accuracy.n),
            _percent(row.accuracy.accuracy),
            f"{_percent(row.accuracy.ci_low)} - {_percent(row.accuracy.ci_high)}",
            _percent(row.majority_share),
            _percent(row.in_subject_share),
            row.majority_answer,
        )
        for row in report.relations
    ]
    run, summary = report.run, report.summary
    speed = f"{summary.requests_per_s:.1f} requests/s" if summary.requests_per_s else "no timing"
    shots = run.config.get("shots")
    where = f" --db {shlex.quote(str(database))}"
    query = f"FROM samples SELECT question, answer, correct WHERE run_id = '{run.run_id}' LIMIT 5"
    lines = [
        f"{run.ckpt} on {run.data}: {summary.n_done} of {run.n_planned} questions, {shots}-shot, "
        f"{run.config.get('match')} match, {speed}",
        "",
        *_aligned([header, *body], numeric=(1, 2, 3, 4, 5), rule_before_last=len(body) > 1),
        "",
        "majority: always giving the relation's most frequent answer. in subject: the answer stands in the "
        "subject's name.",
        f"run {run.run_id} ({summary.status}) in {database}",
        f"  morfi show {run.run_id}{where}",
        f'  morfi sql "{query}"{where}',
    ]
    return "\n".join(lines)


def run_object(report: RunReport) -> dict[str, Any]:
    """The object that `morfi eval --json` and `morfi show --json` print."""
    run, summary = report.run, report.summary
    return {
        "run_id": run.run_id,
        "status": summary.status,
        "ckpt": run.ckpt,
        "ckpt_sha256": run.ckpt_sha256,
        "data": run.data,
        "data_sha256": run.data_sha256,
        "n": summary.n,
        "accuracy": summary.accuracy,
        "ci": [summary.ci_low, summary.ci_high] if summary.n else None,
        "by_relation": {
            row.accuracy.relation: {
                "n": row.accuracy.n,
                "accuracy": row.accuracy.accuracy,
                "ci": [row.accuracy.ci_low, row.accuracy.ci_high],
                "majority_share": row.majority_share,
                "in_subject_share": row.in_subject_share,
            }
            for row in report.relations
            if row.accuracy.relation is not None
        },
        "requests_per_s": summary.requests_per_s,
        "output_tokens": summary.output_tokens,
        "wall_s": summary.wall_s,
    }


def run_details(run: RunRecord, attempts: Sequence[AttemptRecord]) -> str:
    """What made a run: what `morfi show` adds to its table."""
    adapter = f", adapter {run.adapter_sha256[:16]}" if run.adapter_sha256 else ""
    lines = [
        f"checkpoint {run.ckpt_sha256[:16]} (base {run.base} {(run.base_sha256 or '')[:16]}{adapter})",
        f"data {run.data} {run.data_sha256[:16]}; prompt {run.prompt!r}, BOS {'yes' if run.bos else 'no'}",
        f"settings {json.dumps(dict(run.config), sort_keys=True)}",
    ]
    for number, attempt in enumerate(attempts, 1):
        code = {
            "morfi": f"{attempt.morfi_version} {(attempt.git_commit or '')[:16]}".strip(),
            **attempt.versions,
        }
        lines += [
            f"attempt {number}, {attempt.started_at:%Y-%m-%d %H:%M:%S} UTC: {attempt.command}",
            f"  {attempt.device}; {', '.join(f'{name} {version}' for name, version in code.items())}",
            f"  engine {json.dumps(dict(attempt.engine), sort_keys=True)}",
        ]
    return "\n".join(lines)


def details_object(run: RunRecord, attempts: Sequence[AttemptRecord]) -> dict[str, Any]:
    """What `morfi show --json` adds to the run's object."""
    wanted = ("created_at", "config", "base", "base_sha256", "adapter_sha256", "prompt", "bos", "seed")
    found = {name: getattr(run, name) for name in wanted}
    return found | {"attempts": [asdict(attempt) for attempt in attempts]}


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
            _percent(row.accuracy),
            f"{_percent(row.ci_low)} - {_percent(row.ci_high)}",
            f"{row.requests_per_s:.1f}" if row.requests_per_s else "",
        )
        for row in summaries
    ]
    return "\n".join(_aligned([header, *body], numeric=(3, 5, 6, 7)))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _aligned(
    rows: Sequence[Sequence[str]], *, numeric: Iterable[int] = (), rule_before_last: bool = False
) -> list[str]:
    """The rows as lines of equal columns, a rule under the first; columns in `numeric` stand right."""
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


def comparison_table(comparison: Comparison, flips: int = 20) -> str:
    """The table of `morfi compare`, with at most `flips` of the answers that changed."""
    header = ("relation", "n", "a", "b", "b - a", "95 % interval", "gained", "lost", "McNemar p")
    rows = [_difference_cells(row) for row in (*comparison.by_relation, comparison.whole)]
    lines = [
        f"a: {comparison.run_a}",
        f"b: {comparison.run_b}",
        "",
        *_aligned([header, *rows], numeric=range(1, 9), rule_before_last=len(rows) > 1),
        "",
    ]
    if comparison.n_only_a or comparison.n_only_b:
        lines += [f"answered by one run only: a {comparison.n_only_a}, b {comparison.n_only_b}", ""]
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
        lines += [f"{len(comparison.flips)} answers flipped{_first(len(shown), len(comparison.flips))}:"]
        lines += _aligned([changed, *cells])
    return "\n".join(lines).rstrip()


def _difference_cells(row: Difference) -> tuple[str, ...]:
    return (
        row.relation or "all",
        str(row.n),
        _percent(row.accuracy_a),
        _percent(row.accuracy_b),
        f"{100 * row.difference:+.1f}",
        f"{100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f}",
        str(row.n_gained),
        str(row.n_lost),
        f"{row.p:.2g}",
    )


def _first(n_shown: int, n_all: int) -> str:
    return f", the first {n_shown}" if n_shown < n_all else ""


def arrow_table(rows: pa.Table, limit: int = 200) -> str:
    """At most `limit` rows of a query's result as text."""
    columns = [column.to_pylist() for column in rows.slice(0, limit).columns]  # two may have one name
    cells = [[_cell(value) for value in row] for row in zip(*columns, strict=True)]
    lines = _aligned([rows.column_names, *cells])
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
    return "\n".join([*_aligned([header, *body], numeric=(4,)), f"{total:.0f} MB in {root}"])
