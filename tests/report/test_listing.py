from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from morfi.report.listing import SHOWN_ROWS, cache_table, rows_table, runs_table, write_rows
from morfi.store import Store
from morfi.store.query import Rows


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


def written(table: pa.Table, ascii_only: bool = False) -> dict[str, Any]:
    """The text that `write_rows` writes of a table, in batches of two rows."""
    file = io.BytesIO()
    rows = Rows(table.schema, iter(table.to_batches(max_chunksize=2)))
    write_rows(rows, file, ascii_only=ascii_only)
    assert file.getvalue().count(b"\n") == 1
    assert not ascii_only or file.getvalue().isascii()
    found: dict[str, Any] = json.loads(file.getvalue(), parse_float=Decimal, parse_constant=pytest.fail)
    return found


def test_a_query_result_keeps_columns_of_one_name_apart() -> None:
    rows = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "a", "a_2"])
    assert rows_table(rows).splitlines()[2].split() == ["1", "2", "3"]
    found = written(rows)
    assert list(found["rows"][0].values()) == [1, 2, 3]
    assert found["columns"] == list(found["rows"][0])
    assert len(set(found["columns"])) == 3


def test_a_query_result_holds_no_number_that_json_lacks() -> None:
    rows = pa.table({"x": [1.5, math.nan, math.inf], "y": [[math.nan], [], None], "z": [{"k": math.nan}] * 3})
    assert written(rows)["rows"] == [
        {"x": 1.5, "y": [None], "z": {"k": None}},
        {"x": None, "y": [], "z": {"k": None}},
        {"x": None, "y": None, "z": {"k": None}},
    ]


def test_numbers_are_numbers_and_keep_their_digits() -> None:
    digits = {
        "whole": pa.array([Decimal(2**100)], pa.decimal128(38, 0)),
        "part": pa.array([Decimal("12345678901234567890.123456789")], pa.decimal128(38, 9)),
        "double": pa.array([123456789.25]),
        "float": pa.array([0.1], pa.float32()),
        "floats": pa.array([[0.1, None]], pa.list_(pa.float32())),
    }
    (found,) = written(pa.table(digits))["rows"]
    assert found == {
        "whole": 2**100,
        "part": Decimal("12345678901234567890.123456789"),
        "double": Decimal("123456789.25"),
        "float": Decimal("0.1"),
        "floats": [Decimal("0.1"), None],
    }
    shown = rows_table(pa.table(digits)).splitlines()[2].split("  ")
    assert [cell.strip() for cell in shown if cell.strip()] == [
        str(2**100),
        "12345678901234567890.123456789",
        "123456789.25",
        "0.1",
        "[0.1, None]",
    ]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_all_text_and_no_row_is_json(ascii_only: bool) -> None:
    text = ['say "hi"\n', "Łódź 🗼", None]
    rows = pa.table({"é": text, "of": [{"ł": ["ł"]}] * 3})
    assert written(rows, ascii_only)["rows"] == rows.to_pylist()
    assert written(rows.slice(0, 0), ascii_only) == {"run_id": None, "columns": ["é", "of"], "rows": []}


def test_a_query_result_is_cut_after_the_limit_and_a_cell_after_sixty_characters() -> None:
    n = SHOWN_ROWS + 1
    rows = pa.table(
        {"n": list(range(n)), "text": ["x" * 61, "two\nlines", None, "y" * 60, *([""] * (n - 4))]}
    )
    lines = rows_table(rows).splitlines()
    assert len(lines) == 2 + SHOWN_ROWS + 1
    assert lines[-1].startswith(f"(the first {SHOWN_ROWS} rows;")
    assert lines[2].endswith("x...")
    assert "two\\nlines" in lines[3]
    assert "y" * 60 in lines[5]
    assert len(rows_table(rows.slice(0, 0)).splitlines()) == 2
    assert len(rows_table(rows.slice(1)).splitlines()) == 2 + SHOWN_ROWS


def test_an_empty_cache_is_zero_megabytes() -> None:
    assert cache_table(Path("/somewhere"), []).splitlines()[-1] == "0 MB in /somewhere"
