from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from morfi.report.listing import arrow_object, arrow_table, cache_table, runs_table
from morfi.store import Store


def test_the_table_of_runs_holds_a_line_for_each_in_columns(
    store: Store, add_run: Callable[..., str]
) -> None:
    for run_id in ("run-a", "run-bb"):
        add_run(store, run_id, n_planned=10)
    lines = runs_table(store.runs(9)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["run-bb", "run-a"]
    assert "7/10" in lines[2]
    assert "57.1 %" in lines[2]
    assert len({line.index("57.1 %") for line in lines[2:]}) == 1


def test_no_runs_give_the_header_alone() -> None:
    assert runs_table([]).split()[0] == "run"
    assert len(runs_table([]).splitlines()) == 2


def test_a_query_result_keeps_columns_of_one_name_apart() -> None:
    rows = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_2"])
    assert arrow_table(rows).splitlines()[2].split() == ["1", "2", "3"]
    found = arrow_object(rows)
    assert list(found["rows"][0].values()) == [1, 2, 3]
    assert found["columns"] == list(found["rows"][0])
    assert len(set(found["columns"])) == 3


def test_a_query_result_holds_no_number_that_json_lacks() -> None:
    rows = pa.table({"x": [1.5, math.nan, math.inf], "y": [[math.nan], [], None], "z": [{"k": math.nan}] * 3})
    assert arrow_object(rows)["rows"] == [
        {"x": 1.5, "y": [None], "z": {"k": None}},
        {"x": None, "y": [], "z": {"k": None}},
        {"x": None, "y": None, "z": {"k": None}},
    ]


def test_a_query_result_is_cut_after_the_limit_and_a_cell_after_sixty_characters() -> None:
    rows = pa.table({"n": list(range(5)), "text": ["x" * 61, "two\nlines", None, "y" * 60, ""]})
    lines = arrow_table(rows, limit=4).splitlines()
    assert len(lines) == 7
    assert lines[-1] == "(5 rows, the first 4; --json gives all)"
    assert lines[2].endswith("x...")
    assert "two\\nlines" in lines[3]
    assert "y" * 60 in lines[5]
    assert len(arrow_table(rows.slice(0, 0)).splitlines()) == 2


def test_an_empty_cache_is_zero_megabytes() -> None:
    assert cache_table(Path("/somewhere"), []).splitlines()[-1] == "0 MB in /somewhere"
