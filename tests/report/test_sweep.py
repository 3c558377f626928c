from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.conditions.levels import SHARE_UNKNOWN
from morfi.report.sweep import settings_of, sweep_object, sweep_table
from morfi.statistics import wilson_interval
from morfi.store.records import SweepAccuracy


def accuracy(
    level: float | None,
    setting: str | None,
    questions: str,
    n_correct: int,
    *,
    n: int = 100,
    n_seeds: int = 1,
    by_seed: tuple[float, ...] = (),
) -> SweepAccuracy:
    interval = wilson_interval(n_correct, n)
    return SweepAccuracy(
        level, setting, questions, n_seeds, n, n_correct, n_correct / n, interval.low, interval.high, by_seed
    )


ROWS = [
    accuracy(None, None, "test Known", 20),
    accuracy(0, "1", "test Known", 92),
    accuracy(0, "10", "test Known", 100),
    accuracy(100, "1", "test Known", 62),
    accuracy(100, "early-stop", "test Known", 5),
    accuracy(100, "1", "train Unknown", 31, n=64, n_seeds=2),
    accuracy(0, "1", "test Unknown", 3),
]


def blocks(rows: list[SweepAccuracy]) -> dict[str, list[str]]:
    found = [block.splitlines() for block in sweep_table(rows, SHARE_UNKNOWN).split("\n\n")]
    return {lines[0].partition(",")[0]: lines[1:] for lines in found}


def test_blocks_have_one_order_and_rows_go_from_the_base_model_up_by_epochs() -> None:
    shuffled = list(ROWS)
    random.Random(2).shuffle(shuffled)
    found = blocks(shuffled)
    assert list(found) == ["test Known", "test Unknown", "train Unknown"]
    assert [line.split() for line in found["test Known"][2:]] == [
        ["base", "model", "20.0", "20.0"],
        ["1", "92.0", "62.0"],
        ["10", "100.0", "-"],
        ["early-stop", "-", "5.0"],
    ]
    assert found["train Unknown"][2].split() == ["1", "-", "48.4"]


@given(st.lists(st.tuples(st.sampled_from(ROWS), st.integers(0, 100)), min_size=1, max_size=30))
def test_columns_stand_in_one_place_in_every_block_whatever_is_missing(
    drawn: list[tuple[SweepAccuracy, int]],
) -> None:
    rows = [accuracy(row.level, row.epoch_setting, row.questions, n_correct) for row, n_correct in drawn]
    found = blocks(rows)
    rules = {lines[1] for lines in found.values()}
    assert len(rules) == 1
    ends = {len(line) for lines in found.values() for line in lines}
    assert ends == {len(rules.pop())}


def test_the_title_of_a_block_tells_counts_seeds_and_the_widest_interval() -> None:
    widest = max(row.ci_high - row.accuracy for row in ROWS if row.questions == "train Unknown")
    title = next(
        line for line in sweep_table(ROWS, SHARE_UNKNOWN).splitlines() if line.startswith("train Unknown")
    )
    assert "n = 64, 2 seeds; mean and 95 % interval over seeds; intervals over answers within" in title
    assert f"within {100 * widest:.1f} points" in title


def test_several_seeds_are_a_mean_with_its_interval_over_them() -> None:
    rows = [
        accuracy(0, "3", "test Known", 240, n=300, n_seeds=3, by_seed=(0.75, 0.8, 0.85)),
        accuracy(100, "3", "test Known", 150, n=300, n_seeds=3, by_seed=(0.5, 0.5, 0.5)),
    ]
    assert blocks(rows)["test Known"][2].split() == ["3", "80.0", "+-", "12.4", "50.0"]
    low, _ = sweep_object(rows, SHARE_UNKNOWN)["groups"]["test Known"]["checkpoints"]
    assert low["by_seed"] == [0.75, 0.8, 0.85]
    assert low["ci_over_seeds"] == [
        pytest.approx(0.8 - 0.1242, abs=1e-4),
        pytest.approx(0.8 + 0.1242, abs=1e-4),
    ]


def test_the_object_keeps_intervals_and_counts() -> None:
    found = sweep_object(ROWS, SHARE_UNKNOWN)["groups"]
    assert found["train Unknown"]["base"] is None
    assert found["test Known"]["base"]["n_correct"] == 20
    (learned,) = found["train Unknown"]["checkpoints"]
    interval = wilson_interval(31, 64)
    assert learned["ci"] == [interval.low, interval.high]
    assert (learned["level"], learned["epochs"], learned["n_seeds"], learned["n"]) == (100, "1", 2, 64)
    order = [(row["level"], row["epochs"]) for row in found["test Known"]["checkpoints"]]
    assert order == [(0, "1"), (0, "10"), (100, "1"), (100, "early-stop")]


def test_a_sweep_of_the_base_model_alone_and_an_empty_one_are_shown() -> None:
    assert blocks(ROWS[:1])["test Known"][2].split() == ["base", "model", "20.0"]
    assert sweep_table([], SHARE_UNKNOWN) == "no accuracies"
    assert sweep_object([], SHARE_UNKNOWN)["groups"] == {}


def test_epoch_settings_are_ordered_as_numbers() -> None:
    rows = [accuracy(0, name, "test Known", 1) for name in ("10", "early-stop", "2", "1", "20")]
    assert settings_of(rows) == ["1", "2", "10", "20", "early-stop"]
