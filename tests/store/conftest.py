"""Shared: a store of which two of a run's four questions are answered."""

from __future__ import annotations

from pathlib import Path

import pytest
from answered_run import QUESTIONS, completions
from run_record import run_record

from morfi.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "morfi.duckdb", lock_timeout_s=0.2)
    store.begin_run(run_record(), {"test": QUESTIONS})
    store.write_completions(completions(0, 2))
    return store
