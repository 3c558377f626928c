"""The line of weights that were merged on a device: what it says, and where there is none."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from morfi.engine.protocol import MergeDifference
from morfi.verification import swap
from morfi.verification.lines import Outcome

PARTS = [MergeDifference(99, 3, 0.25, "a"), MergeDifference(50, 0, 0.0, "b"), MergeDifference(8, 1, 0.5, "c")]


@pytest.mark.parametrize(
    ("found", "outcome", "says"),
    [
        (PARTS, Outcome.HOLDS, "4 of 157 weights differ from the CPU's merge, by at most 0.5 of"),
        ([*PARTS, MergeDifference(1, 1, 2.0, "d")], Outcome.DIFFERS, r"by at most 2 of .*\(d\)"),
        ([], Outcome.UNCHECKED, "merged on the CPU"),
        (None, Outcome.UNCHECKED, "merged on the CPU"),
    ],
)
def test_the_worst_part_decides(
    found: list[MergeDifference] | None, outcome: Outcome, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap, "resolve_live", lambda folder, base: "adapter")
    engine: Any = SimpleNamespace()
    if found is not None:
        engine.compare_merge = lambda checkpoint: MergeDifference.of_all(found)
    subject: Any = SimpleNamespace(engine=engine, checkpoint=None)
    line = swap._merged(subject, Path())
    assert line.outcome == outcome
    assert re.search(says, line.says)
