"""The table of a series' conditions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from morfi.conditions.levels import Property
from morfi.conditions.listing import ConditionFiles
from morfi.report.conditions import conditions_table


def shown(*named: tuple[str, str]) -> list[str]:
    """The last column of the table of checkpoints of these names and paths."""
    rows = [
        ConditionFiles(name, float(level), 0, "final", "adapter", "ab" * 32, 1000, path)
        for level, (name, path) in enumerate(named)
    ]
    base = SimpleNamespace(name="tiny", dtype="float32", sha256="cd" * 32)
    series: Any = SimpleNamespace(varied=Property("dose", "mg"), base=base)
    return [line.split()[-1] for line in conditions_table(series, rows).splitlines()[-len(rows) :]]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ([("a", "/x/a"), ("b", "/x/b")], ["a", "b"]),
        (
            [("epoch-02", "/r/level-000/epoch-02"), ("epoch-02", "/r/level-050/epoch-02")],
            ["level-000/epoch-02", "level-050/epoch-02"],
        ),
        ([("e", "/r/one/l/e"), ("e", "/r/two/l/e"), ("mine", "/r/e")], ["one/l/e", "two/l/e", "mine"]),
        ([("e", "/l/e"), ("e", "/l/l/e")], ["/l/e", "l/l/e"]),
        ([("e", "/r/one/e"), ("e", "/r/one/e")], ["e", "e"]),
        ([("m", "here/m"), ("m", "there/m")], ["here/m", "there/m"]),
    ],
)
def test_checkpoints_of_one_name_are_told_apart_by_their_paths(
    named: list[tuple[str, str]], expected: list[str]
) -> None:
    assert shown(*named) == expected
