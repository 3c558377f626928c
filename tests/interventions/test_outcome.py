"""Knowledge recovery by its definition, and the intervals over directions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from morfi.interventions.outcome import recovery
from morfi.statistics import mean_interval, wilson_interval


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1))
def test_recovery_is_a_conditional_share(verdicts: list[tuple[bool, bool, bool]]) -> None:
    before, after, reference = (np.array(one) for one in zip(*verdicts, strict=True))
    found = recovery(before.tolist(), after.tolist(), reference.tolist())
    back = after & ~before
    assert (found.recovered.n, found.base_rate.n) == (back.sum(), (~before).sum())
    for share, where in ((found.recovered, back), (found.base_rate, ~before)):
        if where.any():
            assert share.share == pytest.approx(reference[where].mean())
        else:
            assert share.share is None
        assert share.interval == wilson_interval(share.n_right, share.n)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20))
def test_the_interval_of_a_mean_is_students(values: list[float]) -> None:
    found = mean_interval(values)
    spread = np.std(values, ddof=1)
    if spread < 1e-6:
        assert found.low == pytest.approx(found.high, abs=1e-4)
        return
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 values; expected at least 2"):
        mean_interval([0.5])
