"""The record of a run for tests that put one into a store by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from morfi.store.records import RunRecord

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def run_record(run_id: str = "run-a", **changes: Any) -> RunRecord:
    """The record of an evaluation of smollm2 on the world facts, begun at START, but for `changes`."""
    record: dict[str, Any] = {
        "kind": "eval",
        "created_at": START,
        "fingerprint": run_id,
        "config": {},
        "ckpt": "smollm2",
        "ckpt_sha256": "a" * 64,
        "base": "smollm2",
        "base_sha256": "a" * 64,
        "adapter_sha256": None,
        "data": "world-facts",
        "data_sha256": "d" * 64,
        "prompt": "p",
        "bos": True,
        "seed": 0,
        "n_planned": 1,
    }
    return RunRecord(run_id, **{**record, **changes})
