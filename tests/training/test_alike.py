"""Checkpoints of equal weights are said once for each group, by what tells their names apart."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from morfi.store.records import CheckpointRow
from morfi.training.alike import same_weights

PLACES = st.tuples(st.sampled_from((0, 50, 100)), st.integers(0, 1), st.integers(1, 3))


@given(st.dictionaries(PLACES, st.sampled_from("abcd")))
def test_each_group_of_equal_weights_is_one_line(weights: dict[tuple[int, int, int], str]) -> None:
    rows = [
        CheckpointRow(level, seed, setting, epoch, "/x", sha256 * 64, {}, 1)
        for (level, seed, epoch), sha256 in weights.items()
        for setting in (str(epoch), "early-stop")
    ]
    groups = [(sha256, n) for sha256, n in Counter(weights.values()).items() if n > 1]
    lines = list(same_weights(rows))
    assert [line.partition(",")[0] for line in lines] == [
        f"{n} checkpoints have the same weights (sha256 {sha256 * 16})" for sha256, n in groups
    ]
