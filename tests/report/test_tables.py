from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from morfi.report.tables import aligned, percent

CELL = st.text("ab 1%", max_size=6)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELL, min_size=n, max_size=n), min_size=1)))
def test_every_cell_stands_in_its_columns_place_even_where_others_are_empty(rows: list[list[str]]) -> None:
    lines = aligned(rows, numeric=[0])
    widths = [len(part) for part in lines[1].split("  ")] if lines[1] else [0]
    assert len(lines) == len(rows) + 1
    for row, line in zip(rows, [lines[0], *lines[2:]], strict=True):
        padded, start = line.ljust(sum(widths) + 2 * len(widths)), 0
        for column, cell in enumerate(row):
            width = max(len(other[column]) for other in rows)
            part = padded[start : start + width]
            assert part == (cell.rjust(width) if column == 0 else cell.ljust(width))
            start += width + 2


def test_a_share_that_is_not_known_is_an_empty_cell() -> None:
    assert (percent(None), percent(0.0), percent(0.5714)) == ("", "0.0 %", "57.1 %")
