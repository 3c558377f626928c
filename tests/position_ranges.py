"""Ranges of positions for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

Range = tuple[int, int | None]


def ranges(places: st.SearchStrategy[int]) -> st.SearchStrategy[Range]:
    """Half-open ranges between `places`; none that is empty whatever the prompt."""
    return st.tuples(places, st.none() | places).filter(_may_hold)


def _may_hold(found: Range) -> bool:
    start, stop = found
    return stop is None or (start < 0) != (stop < 0) or start < stop
