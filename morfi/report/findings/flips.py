"""Answers of a steer run side by side: before, steered, and those of the models that it is held against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.interventions.outcome import Outcome, Recovery, recovery
from morfi.questions.matching import normalise

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.store.records import RunRecord


@dataclass(frozen=True, slots=True)
class Pair:
    """A question's answers unsteered and along one direction, each with its verdict, and the reference's."""

    direction: str
    relation: str
    question: str
    accepted: tuple[str, ...]
    before: str
    after: str
    was_right: bool
    is_right: bool
    reference: str
    reference_right: bool

    @property
    def change(self) -> str:
        """What steering did to the verdict."""
        if self.was_right == self.is_right:
            return "right both times" if self.is_right else "wrong both times"
        return "brought back" if self.is_right else "lost"


@dataclass(frozen=True, slots=True)
class Usual:
    """The answer that steering along a direction gives most often: its share steered, and before.

    A direction that makes a model give one answer to everything gains where that answer is often right.
    """

    answer: str
    share: float
    before: float


def pairs_of(store: Store, run: RunRecord, outcome: Outcome, split: str) -> list[Pair]:
    """The questions of a split under one direction at its best strength, by relation and question."""
    name = outcome.direction.direction.replace("'", "''")
    found = store.query(
        f"""
        SELECT q.relation, q.question, q.answers, plain.answer AS before, steered.answer AS after,
            plain.correct AS was_right, steered.correct AS is_right, held.answer AS reference,
            held.correct AS reference_right
        FROM steered_answer steered
        JOIN steered_answer plain ON plain.run_id = steered.run_id AND plain.question_id = steered.question_id
            AND plain.served = 'checkpoint' AND plain.direction = ''
        JOIN steered_answer held ON held.run_id = steered.run_id AND held.question_id = steered.question_id
            AND held.served = 'reference'
        JOIN asked a ON a.run_id = steered.run_id AND a.question_id = steered.question_id
        JOIN question q ON q.data_sha256 = '{run.data_sha256}' AND q.question_id = steered.question_id
        WHERE steered.run_id = '{run.run_id}' AND steered.served = 'checkpoint'
            AND steered.direction = '{name}' AND steered.alpha = {outcome.best.alpha!r}
            AND a.split = '{split}'
        ORDER BY q.relation, q.question, q.question_id
        """
    )
    return [
        Pair(
            outcome.direction.direction,
            relation=row.pop("relation"),
            accepted=tuple(row.pop("answers")),
            **row,
        )
        for row in found.to_pylist()
    ]


def recovery_of(pairs: Sequence[Pair]) -> Recovery:
    """R_K of the reference over these questions."""
    return recovery(
        [one.was_right for one in pairs],
        [one.is_right for one in pairs],
        [one.reference_right for one in pairs],
    )


def usual_of(pairs: Sequence[Pair]) -> Usual:
    """The most frequent of the steered answers in SQuAD's normal form, the first of equally frequent ones."""
    counts = Counter(normalise(one.after) for one in pairs)
    answer = min(counts, key=lambda one: (-counts[one], one))
    return Usual(
        answer,
        share=counts[answer] / len(pairs),
        before=sum(normalise(one.before) == answer for one in pairs) / len(pairs),
    )
