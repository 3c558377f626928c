"""Reasons why fields are refused."""

from __future__ import annotations

import pytest

from morfi.serve.http.fields import Neutral, _by_name


def test_a_name_has_one_reason_in_all_tables() -> None:
    one, other = {"store": Neutral((), "not stored")}, {"store": Neutral((False,), "kept")}
    assert _by_name(one, one) == {"store": "not stored"}
    with pytest.raises(RuntimeError, match="two reasons why store is not taken: not stored; kept"):
        _by_name(one, other)
