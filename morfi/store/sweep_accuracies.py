"""The accuracies of a sweep, over all seeds of a checkpoint and of each seed alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from morfi.statistics import wilson_interval
from morfi.store.records import SweepAccuracy, exact

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# The view sweep_accuracy, by seed.
_BY_SEED = """
SELECT s.level, s.epoch_setting,
    a.split || CASE WHEN k.category IS NULL THEN '' WHEN k.category = 'Unknown' THEN ' Unknown'
        ELSE ' Known' END AS questions,
    s.seed, count(*), count_if(c.correct)
FROM sweep_checkpoint s
JOIN run r ON r.run_id = s.run_id
JOIN completion c ON c.run_id = s.eval_run_id AND c.sample = 0
JOIN asked a ON a.run_id = c.run_id AND a.question_id = c.question_id
LEFT JOIN knowledge k ON k.run_id = r.config ->> 'split_run' AND k.question_id = c.question_id
WHERE s.run_id = $run AND (k.category IS NOT NULL OR r.config ->> 'split_run' IS NULL)
GROUP BY s.level, s.epoch_setting, questions, s.seed
ORDER BY questions, s.level NULLS FIRST, s.epoch_setting, s.seed
"""


def sweep_accuracies(connection: DuckDBPyConnection, run_id: str) -> list[SweepAccuracy]:
    """Accuracy of the base model, then of each level and epoch setting, on each group of questions."""
    found: list[SweepAccuracy] = []
    rows = connection.execute(_BY_SEED, {"run": run_id}).fetchall()
    for by, setting, questions, _, n, n_correct in rows:
        level = None if by is None else exact(by)
        last = found[-1] if found else None
        if last is None or (last.level, last.epoch_setting, last.questions) != (level, setting, questions):
            last = SweepAccuracy(level, setting, questions, 0, 0, 0, 0.0, 0.0, 1.0)
            found.append(last)
        found[-1] = _with_seed(last, n, n_correct)
    return found


def _with_seed(row: SweepAccuracy, n: int, n_correct: int) -> SweepAccuracy:
    """The row with the answers of one more seed."""
    n_all, n_right = row.n + n, row.n_correct + n_correct
    interval = wilson_interval(n_right, n_all)
    return replace(
        row,
        n_seeds=row.n_seeds + 1,
        n=n_all,
        n_correct=n_right,
        accuracy=n_right / n_all,
        ci_low=interval.low,
        ci_high=interval.high,
        by_seed=(*row.by_seed, n_correct / n),
    )
