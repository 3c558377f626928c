"""How the answers of a run came out, whatever rule it goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_COUNTED = (
    "SELECT relation, count_if({greedy}), count_if({greedy} AND correct), "
    "count_if({greedy} AND correct_squad), count_if({greedy} AND correct_answer), count(*), "
    "count_if(finish_reason = 'length'), count_if(answer = '') "
    "FROM ({rows}) GROUP BY relation ORDER BY relation"
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

    `steered` counts the answers of a steer run.
    """
    rows, greedy = _STEERED if steered else _COMPLETIONS, f"sample % {1 + n_samples} = 0"
    counted = connection.execute(_COUNTED.format(rows=rows, greedy=greedy), {"run": run_id}).fetchall()
    return [AnswerCounts(*row) for row in counted]
