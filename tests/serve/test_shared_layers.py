"""Which requests of a step go through the lower layers as one, by hand."""

from __future__ import annotations

import pytest

from morfi.serve.shared_layers import Prefix, SharedLayers, plan


def test_of_equal_requests_the_first_stays() -> None:
    found = plan([b"x", None, b"y", b"x", None, b"y"], [2, 1, 3, 2, 1, 3], 4)
    assert found is not None
    assert found.last == 4
    assert found.requests.tolist() == [0, 1, 2, 4]
    assert found.counts.tolist() == [2, 1, 3, 1]
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert found.places.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 6, 3, 4, 5]


def test_where_nothing_is_equal_there_is_no_plan() -> None:
    assert plan([b"x", b"y", None, None], [1, 1, 1, 1], 0) is None


def test_a_prefix_is_equal_to_one_of_the_same_tokens_in_the_same_steps() -> None:
    one, other, third = Prefix(), Prefix(), Prefix()
    assert one.extend(0, [5, 6, 7]) == other.extend(0, [5, 6, 7]) is not None
    assert one.extend(3, [8]) == other.extend(3, [8])
    assert one.extend(4, [9]) != other.extend(4, [10])
    assert third.extend(0, [5, 6, 7, 8]) not in (one.digest, other.digest)


def test_a_prefix_that_came_from_the_cache_has_no_equal() -> None:
    one = Prefix()
    assert one.extend(2, [7]) is None
    assert one.extend(3, [8]) is None
    assert one.extend(0, [5, 6]) is not None, "preempted, it is computed from the first token on"


def test_a_plan_that_was_not_carried_out_is_an_error() -> None:
    shared = SharedLayers([], dict)
    shared.begin(plan([b"x", b"x"], [1, 1], 2))
    with pytest.raises(RuntimeError, match="up to 2 were to be shared"):
        shared.check()
    shared.begin(None)
    shared.check()
