"""Shared: an empty store, and an evaluation of the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from morfi.evaluation.config import EvalConfig
from morfi.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "morfi.duckdb", lock_timeout_s=1.0)


@pytest.fixture
def config(tiny_model: Path, data_file: Path) -> EvalConfig:
    """Twenty questions in seven batches, the last of two."""
    return EvalConfig(str(tiny_model), data=str(data_file), shots=2, batch=3)
