"""How the answers of a run came out, whatever rule it goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.questions.matching import is_correct

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_COUNTED = (
    "SELECT relation, count_if({greedy}), count_if({greedy} AND correct), "
    "coalesce(count_if({greedy} AND correct_squad), 0), "
    "coalesce(count_if({greedy} AND correct_answer), 0), count(*), "
    "count_if(finish_reason = 'length'), count_if(answer = '') "
    "FROM ({rows}) GROUP BY relation ORDER BY relation"
)
# Judged by a morfi that had one rule for a run only.
_UNJUDGED = (
    "SELECT relation, answer, answers, count(*) FROM ({rows}) "
    "WHERE {greedy} AND (correct_squad IS NULL OR correct_answer IS NULL) GROUP BY ALL"
)
_COMPLETIONS = "FROM samples WHERE run_id = $run"
_STEERED = (
    "SELECT s.*, 0 AS sample, q.relation, q.answers FROM steered_answer s JOIN run r ON r.run_id = s.run_id "
    "JOIN question q ON q.data_sha256 = r.data_sha256 AND q.question_id = s.question_id WHERE s.run_id = $run"
)


@dataclass(frozen=True, slots=True)
class AnswerCounts:
    """The answers of one relation: the greedy ones by rule, and of all those that were cut or are empty."""

    relation: str
    n: int  # greedy ones
    n_correct: int  # by the run's rule
    n_squad: int
    n_answer: int
    n_all: int  # with samples
    n_cut: int  # at --max-tokens
    n_empty: int


def count_answers(
    connection: DuckDBPyConnection, run_id: str, n_samples: int, *, steered: bool = False
) -> list[AnswerCounts]:
    """The counts of each relation; each prompt of the run has one greedy answer and `n_samples` others.

    What an earlier morfi judged by one rule only is judged here by the other two. `steered` counts the
    answers of a steer run.
    """
    parts = {"rows": _STEERED if steered else _COMPLETIONS, "greedy": f"sample % {1 + n_samples} = 0"}
    values = {"run": run_id}
    squad: dict[str, int] = {}
    answer: dict[str, int] = {}
    unjudged = connection.execute(_UNJUDGED.format(**parts), values).fetchall()
    for relation, text, accepted, n in unjudged:
        squad[relation] = squad.get(relation, 0) + n * is_correct(text, accepted, "squad")
        answer[relation] = answer.get(relation, 0) + n * is_correct(text, accepted, "answer")
    return [
        AnswerCounts(
            relation,
            n,
            n_correct,
            n_squad + squad.get(relation, 0),
            n_answer + answer.get(relation, 0),
            *rest,
        )
        for relation, n, n_correct, n_squad, n_answer, *rest in connection.execute(
            _COUNTED.format(**parts), values
        ).fetchall()
    ]
