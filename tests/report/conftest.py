"""Shared: a store, and a maker of runs in which every answer's verdict is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from run_record import run_record

from morfi.questions.question import Question
from morfi.store import Store
from morfi.store.records import AttemptEnd, AttemptRecord, CompletionRow, JudgedAnswer

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
# Relation, subject, accepted answers, verdict; majority 3/5 (France) and 1/2, in the subject 1/5 and 1/2.
FACTS = (
    ("P17", "Lyon", ("France",), True),
    ("P17", "Nice", ("France", "FR"), True),
    ("P17", "Paris, France", ("the France!",), False),
    ("P17", "Kyiv", ("Ukraine",), False),
    ("P17", "Oslo", ("Norway",), True),
    ("P36", "Lima Region", ("Lima",), False),
    ("P36", "Chad", ("N'Djamena",), True),
)


def _add_run(
    store: Store,
    run_id: str,
    facts: Sequence[tuple[str, str, tuple[str, ...], bool]] = FACTS,
    *,
    n_planned: int = 0,
    split: str = "test",
) -> str:
    questions = [
        Question(f"q{i:03}", relation, subject, f"{relation} of {subject}?", answers)
        for i, (relation, subject, answers, _) in enumerate(facts)
    ]
    run = run_record(
        run_id,
        created_at=START,
        config={"shots": 4, "match": "squad"},
        ckpt="tiny",
        ckpt_sha256="c" * 64,
        base="tiny",
        base_sha256="c" * 64,
        data="facts.jsonl",
        prompt="Q: {question}\nA:",
        n_planned=n_planned or len(facts),
    )
    store.begin_run(run, {split: questions})
    number = store.begin_attempt(run_id, AttemptRecord(START, "morfi", 1, "h", "0", None, {}, "cpu", {}))
    store.write_completions(
        [
            CompletionRow(
                run_id, q.id, 0, "p", JudgedAnswer(" x", "x", "stop", *(fact[3],) * 3, 10, 5, 2, number)
            )
            for q, fact in zip(questions, facts, strict=True)
        ]
    )
    store.end_attempt(run_id, number, AttemptEnd(START, "done", 4.0, 2.0, len(facts), 70, 2 * len(facts)))
    return run_id


@pytest.fixture(scope="session")
def add_run() -> Callable[..., str]:
    """Adds a finished run to a store under an id; its facts are the seven of this file, or those given."""
    return _add_run


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "morfi.duckdb")
