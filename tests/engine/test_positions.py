"""Positions of a steering, as they are taken and refused."""

from __future__ import annotations

import pytest

from morfi.engine.steering import Steering, spans
from morfi.errors import InputError


@pytest.mark.parametrize("place", [(5, 5), (5, 4), (-2, -2), (-2, -3)])
def test_a_range_that_holds_no_position_of_any_prompt_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"range {place[0]}:{place[1]} holds no position"):
        Steering(0, "d", positions=(0, place))


def test_a_range_that_only_a_longer_prompt_has_is_passed_over() -> None:
    assert spans(((3, -2),), 4) == []
    assert spans(((3, -2),), 8) == [(3, 6)]
    assert spans(((-1, 2),), 8) == []
