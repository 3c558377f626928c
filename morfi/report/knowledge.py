"""The knowledge that a split run found in the model, by split and relation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from morfi.questions.matching import answer_in_subject, majority_answer
from morfi.questions.relations import named
from morfi.questions.sets import SPLITS
from morfi.report.tables import aligned, percent
from morfi.store.records import BaselineRow, KnowledgeRow
from morfi.training.mixtures import KNOWN_CATEGORIES, UNKNOWN

_CATEGORIES = (*KNOWN_CATEGORIES, UNKNOWN)


@dataclass(frozen=True, slots=True)
class KnowledgeReport:
    """The categories of a split's questions of one relation (None: of all), beside the two confounds."""

    split: str
    relation: str | None
    n: int
    by_category: dict[str, int]
    p_greedy: float  # mean over the questions
    majority_answer: str
    majority_share: float  # accuracy of always giving the relation's most frequent answer
    in_subject_share: float  # questions whose answer stands in the subject's name


def knowledge_report(
    rows: Sequence[KnowledgeRow], baselines: Sequence[BaselineRow] = (), match: str = "squad"
) -> list[KnowledgeReport]:
    """The lines of the report: for every split its relations, then the whole split.

    `baselines` are those of the whole data; where one is missing it is that of `rows`, by the rule `match`.
    """
    whole = {(row.split, row.relation): row for row in baselines}
    lines: list[KnowledgeReport] = []
    for split in SPLITS:
        inside = [row for row in rows if row.split == split]
        if inside:
            parts = [
                _of_relation(
                    split,
                    relation,
                    [row for row in inside if row.relation == relation],
                    whole.get((split, relation)),
                    match,
                )
                for relation in sorted({row.relation for row in inside})
            ]
            # A constant answer for each relation is the stronger baseline of the whole.
            share = sum(part.majority_share * part.n for part in parts) / len(inside)
            lines += [*parts, _line(split, None, inside, "", share)]
    return lines


def _of_relation(
    split: str, relation: str, rows: Sequence[KnowledgeRow], baseline: BaselineRow | None, match: str
) -> KnowledgeReport:
    if baseline is not None:
        return _line(split, relation, rows, baseline.answer, baseline.n_accepting / baseline.n)
    majority = majority_answer([row.asked for row in rows], match)
    return _line(split, relation, rows, majority.answer, majority.share)


def _line(
    split: str, relation: str | None, rows: Sequence[KnowledgeRow], majority: str, share: float
) -> KnowledgeReport:
    """The line of `rows`, with the best constant answer and its share."""
    return KnowledgeReport(
        split=split,
        relation=relation,
        n=len(rows),
        by_category={name: sum(row.category == name for row in rows) for name in _CATEGORIES},
        p_greedy=sum(row.p_greedy for row in rows) / len(rows),
        majority_answer=majority,
        majority_share=share,
        in_subject_share=sum(answer_in_subject(row.asked) for row in rows) / len(rows),
    )


def knowledge_table(
    rows: Sequence[KnowledgeRow], baselines: Sequence[BaselineRow] = (), match: str = "squad"
) -> str:
    """The table that `morfi split` ends with."""
    header = ("split", "relation", "n", *_CATEGORIES, "p greedy", "majority", "in subject", "majority answer")
    body = [
        (
            line.split,
            named(line.relation or "all"),
            str(line.n),
            *(f"{n} {100 * n / line.n:3.0f} %" for n in line.by_category.values()),
            f"{line.p_greedy:.3f}",
            percent(line.majority_share),
            percent(line.in_subject_share),
            line.majority_answer,
        )
        for line in knowledge_report(rows, baselines, match)
    ]
    return "\n".join(
        [
            *aligned([header, *body], numeric=range(2, 10)),
            "",
            "p greedy: share of few-shot prompts whose greedy answer is right. majority: always giving the "
            "relation's most",
            "frequent answer. in subject: the answer stands in the subject's name.",
        ]
    )


def knowledge_object(
    rows: Sequence[KnowledgeRow], baselines: Sequence[BaselineRow] = (), match: str = "squad"
) -> dict[str, Any]:
    """The object of `morfi split --json`: by split, the whole and `by_relation`."""
    found: dict[str, Any] = {}
    for line in knowledge_report(rows, baselines, match):
        split = found.setdefault(line.split, {"by_relation": {}})
        numbers = {
            "n": line.n,
            "by_category": line.by_category,
            "p_greedy": line.p_greedy,
            "majority_share": line.majority_share,
            "in_subject_share": line.in_subject_share,
        }
        if line.relation is None:
            split |= numbers
        else:
            split["by_relation"][line.relation] = numbers
    return {"splits": found}
