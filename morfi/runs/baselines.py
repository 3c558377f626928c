"""The best constant answers: what a run is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from morfi.questions.matching import majority_answer
from morfi.questions.question import Question
from morfi.store.records import BaselineRow


def baselines_of(splits: Mapping[str, Iterable[Question]], match: str) -> tuple[BaselineRow, ...]:
    """The best constant answer to each relation's questions in each split, by the rule `match`.

    These are to be all questions that a run could ask, not those that a limit leaves: the most frequent of
    three answers says little, and of as many answers as questions it is one in three.
    """
    rows = []
    for split, questions in splits.items():
        by_relation: dict[str, list[Question]] = {}
        for question in questions:
            by_relation.setdefault(question.relation, []).append(question)
        for relation, asked in sorted(by_relation.items()):
            found = majority_answer(asked, match)
            rows.append(BaselineRow(split, relation, len(asked), found.answer, found.n))
    return tuple(rows)
