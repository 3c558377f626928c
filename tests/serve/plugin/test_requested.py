"""Ids of a request's answers."""

from __future__ import annotations

import pytest

from morfi.serve.plugin.requested import answer_ids, sample_of


@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize("request_id", ["7", "cmpl-1_2", "a_b"])
def test_an_id_says_which_of_the_answers_it_is(request_id: str, n: int) -> None:
    assert [sample_of(one) for one in answer_ids(request_id, n)] == list(range(n))
