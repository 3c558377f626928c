"""The baselines of a run, before anything is asked: constant answers, and answers out of reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from morfi.questions.encoding import n_tokens
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


def out_of_reach(questions: Sequence[Question], tokenizer: Any, max_tokens: int) -> str | None:
    """A sentence on the questions whose accepted answers all take more than `max_tokens`; None without any.

    An answer is counted as it would be generated, with the blank before it, by the run's own tokenizer.
    """
    # A token holds a byte at least.
    asked = [q for q in questions if all(len(answer.encode()) >= max_tokens for answer in q.answers)]
    answers = list(dict.fromkeys(answer for question in asked for answer in question.answers))
    if not answers:
        return None
    lengths = dict(
        zip(answers, n_tokens([f" {answer.strip()}" for answer in answers], tokenizer), strict=True)
    )
    shortest = [min(lengths[answer] for answer in question.answers) for question in asked]
    longer = sorted(n for n in shortest if n > max_tokens)
    if not longer:
        return None
    return (
        f"{len(longer)} of {len(questions)} questions have accepted answers of more than {max_tokens} tokens "
        f"only, so no answer to them can be right; --max-tokens {longer[-1]} would reach all"
    )
