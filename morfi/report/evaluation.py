"""A run's report: accuracy by relation beside the confounds, and what made the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from morfi.questions import UNSPLIT
from morfi.questions.matching import answer_in_subject, answer_in_text, majority_answer
from morfi.questions.relations import named
from morfi.report.answers import answer_lines, answer_object
from morfi.report.tables import aligned, percent
from morfi.store import Store
from morfi.store.counts import AnswerCounts
from morfi.store.records import AttemptRecord, RelationAccuracy, RunRecord, RunSummary
from morfi.words import by_number, counted


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
    splits: tuple[str, ...]  # whose questions were asked; none is known of a run of before they were stored
    relations: tuple[RelationReport, ...]  # the last is the whole run
    counts: tuple[AnswerCounts, ...]
    of_whole_split: bool  # the majority, not of the questions that were asked
    n_in_text: int  # questions whose text, beside the subject's name, holds an accepted answer


def run_report(store: Store, run_id: str) -> RunReport:
    """The report of a stored run; `run_id` as in `Store.run`."""
    run = store.run(run_id)
    questions = store.questions(run.run_id)
    baselines = {row.relation: row for row in store.baselines(run.run_id)}
    match = run.asked.match
    rows: list[RelationReport] = []
    for accuracy in store.accuracies(run.run_id):
        asked = [q for q in questions if accuracy.relation in (None, q.relation)]
        in_subject = sum(map(answer_in_subject, asked)) / len(asked)
        if accuracy.relation is None:
            # A constant answer for each relation is the stronger baseline of the whole.
            share = sum(row.majority_share * row.accuracy.n for row in rows) / len(asked)
            rows.append(RelationReport(accuracy, "", share, in_subject))
        elif baseline := baselines.get(accuracy.relation):
            share = baseline.n_accepting / baseline.n
            rows.append(RelationReport(accuracy, baseline.answer, share, in_subject))
        else:
            majority = majority_answer(asked, match)
            rows.append(RelationReport(accuracy, majority.answer, majority.share, in_subject))
    return RunReport(
        run,
        store.summary(run.run_id),
        tuple(store.splits(run.run_id)),
        tuple(rows),
        tuple(store.answer_counts(run)),
        of_whole_split=bool(baselines),
        n_in_text=sum(map(answer_in_text, questions)),
    )


def run_table(report: RunReport) -> str:
    """The table of `morfi eval`."""
    header = ("relation", "n", "accuracy", "95 % interval", "majority", "in subject", "majority answer")
    body = [
        (
            named(row.accuracy.relation or "all"),
            str(row.accuracy.n),
            percent(row.accuracy.accuracy),
            f"{percent(row.accuracy.ci_low)} - {percent(row.accuracy.ci_high)}",
            percent(row.majority_share),
            percent(row.in_subject_share),
            row.majority_answer,
        )
        for row in report.relations
    ]
    run, summary = report.run, report.summary
    speed = f"{summary.requests_per_s:.1f} requests/s" if summary.requests_per_s else "no timing"
    lines = [
        f"{run.ckpt} on {run.data}{_of_split(report)}: {summary.n_done} of "
        f"{counted(run.n_planned, 'question')}, {run.asked.shots}-shot, {run.asked.match} match, {speed}",
        "",
        *aligned([header, *body], numeric=(1, 2, 3, 4, 5), rule_before_last=len(body) > 1),
        "",
        f"majority: always giving the relation's most frequent answer{_of_what(report)}. in subject: the "
        "answer stands in the subject's name.",
        *_own_exemplars(report),
        *_in_text(report.n_in_text),
        *answer_lines(report.counts, run.asked.match, run.asked.max_tokens),
    ]
    return "\n".join(lines)


def _of_split(report: RunReport) -> str:
    if UNSPLIT in report.splits:
        return " (no splits)"
    return f" ({', '.join(report.splits)})" if report.splits else ""


def _own_exemplars(report: RunReport) -> list[str]:
    if UNSPLIT not in report.splits or not report.run.asked.shots:
        return []
    return [f"{report.run.data} has no splits: the exemplars are questions of its own, which are not asked."]


def _in_text(n: int) -> list[str]:
    holds = by_number(n, "holds its", "hold their")
    own = by_number(n, "its", "their")
    return [f"{counted(n, 'question')} {holds} answer in {own} own text."] if n else []


def _of_what(report: RunReport) -> str:
    """The questions over which the majority was taken, where that is not plain."""
    if report.of_whole_split:
        return " in the whole split" if report.run.asked.limit else ""
    return " among the questions asked"


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
        "splits": list(report.splits),
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
        **answer_object(report.counts),
        "requests_per_s": summary.requests_per_s,
        "output_tokens": summary.output_tokens,
        "wall_s": summary.wall_s,
    }


def run_details(run: RunRecord, attempts: Sequence[AttemptRecord]) -> str:
    """The provenance of a run, which `morfi show` adds to its table."""
    adapter = f", adapter {run.adapter_sha256[:16]}" if run.adapter_sha256 else ""
    endpoint = run.asked.endpoint
    bos = f" (--bos {run.asked.bos})" if run.asked.bos and not endpoint else ""
    asked = f"checkpoint {run.ckpt_sha256[:16]} (base {run.base} {(run.base_sha256 or '')[:16]}{adapter})"
    if endpoint:
        asked = f"endpoint {endpoint}, model {run.ckpt} {run.ckpt_sha256[:16]}"
    lines = [
        asked,
        f"data {run.data} {run.data_sha256[:16]}; prompt {run.prompt!r}, BOS {run.bos_shown}{bos}",
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
    """The provenance that `morfi show --json` adds to the run's object."""
    wanted = ("created_at", "config", "base", "base_sha256", "adapter_sha256", "prompt", "bos", "seed")
    found = {name: getattr(run, name) for name in wanted}
    return found | {"attempts": [asdict(attempt) for attempt in attempts]}
