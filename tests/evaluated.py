"""Evaluations with the fake engine, and the rows that they leave."""

from __future__ import annotations

from typing import Any

from progress_log import Log

from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import run_evaluation
from morfi.store import Store

FACTS = "SELECT * EXCLUDE (run_id, attempt) FROM samples WHERE run_id = '{}' ORDER BY question_id, sample"


def run(
    config: EvalConfig, store: Store, serving: Any, resume: str | None = None, log: Log | None = None
) -> str:
    """The id of a run of the evaluation."""
    return run_evaluation(config, store, serving, log or Log(), resume=resume, command="morfi eval …")


def facts(store: Store, run_id: str) -> list[dict[str, Any]]:
    """The run's rows without what names the run and the attempt."""
    rows: list[dict[str, Any]] = store.query(FACTS.format(run_id)).to_pylist()
    return rows
