from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from morfi.statistics import (
    Interval,
    mcnemar_exact_p,
    paired_adjusted_interval,
    paired_bootstrap_interval,
    wilson_interval,
)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 100_000))
    return draw(st.integers(0, n)), n


@given(counts(), st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_equals_scipy(case: tuple[int, int], confidence: float) -> None:
    n_correct, n = case
    ours = wilson_interval(n_correct, n, confidence)
    theirs = stats.binomtest(n_correct, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(counts())
def test_wilson_holds_the_share_and_mirrors(case: tuple[int, int]) -> None:
    n_correct, n = case
    ours, mirrored = wilson_interval(n_correct, n), wilson_interval(n - n_correct, n)
    assert 0 <= ours.low <= n_correct / n <= ours.high <= 1
    assert (ours.low, ours.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)


def test_wilson_reaches_the_ends_exactly() -> None:
    assert wilson_interval(0, 7).low == 0.0
    assert wilson_interval(7, 7).high == 1.0
    assert wilson_interval(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("n_correct", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_wilson_refuses_impossible_counts(n_correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        wilson_interval(n_correct, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap_interval([1, 0], confidence=confidence)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_equals_scipy_and_is_symmetric(n_gained: int, n_lost: int) -> None:
    ours = mcnemar_exact_p(n_gained, n_lost)
    expected = stats.binomtest(n_gained, n_gained + n_lost, 0.5).pvalue if n_gained + n_lost else 1.0
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-290)  # SciPy gives 0 below
    assert ours == mcnemar_exact_p(n_lost, n_gained)
    assert 0 <= ours <= 1


@pytest.mark.parametrize(("n_gained", "n_lost"), [(500_000, 501_000), (1_000_000, 1_000_000), (0, 1_000_000)])
def test_mcnemar_holds_for_millions_of_pairs(n_gained: int, n_lost: int) -> None:
    expected = min(1.0, 2 * float(stats.binom.cdf(min(n_gained, n_lost), n_gained + n_lost, 0.5)))
    assert mcnemar_exact_p(n_gained, n_lost) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_mcnemar_refuses_negative_counts() -> None:
    with pytest.raises(ValueError, match="n_lost = -1"):
        mcnemar_exact_p(3, -1)


def test_bootstrap_agrees_with_drawing_questions_one_by_one() -> None:
    differences = [1] * 60 + [-1] * 30 + [0] * 210
    ours = paired_bootstrap_interval(differences, n_resamples=20_000)
    draws = np.random.default_rng(1).choice(differences, size=(20_000, 300)).mean(axis=1)
    # 0.005 is 1.5 of the steps of 1/300 in which means of 300 such differences move.
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.005)


def test_bootstrap_of_many_distinct_values_agrees_with_scipy() -> None:
    values = np.random.default_rng(2).normal(0.3, 1.0, 400)
    ours = paired_bootstrap_interval(list(values), n_resamples=5_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5_000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


@given(
    st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=60),
    st.permutations(range(60)),
    st.integers(0, 9),
)
def test_bootstrap_is_repeatable_bounded_and_blind_to_order(
    differences: list[int], order: list[int], seed: int
) -> None:
    ours = paired_bootstrap_interval(differences, n_resamples=200, seed=seed)
    shuffled = [differences[place] for place in order if place < len(differences)]
    assert ours == paired_bootstrap_interval(shuffled, n_resamples=200, seed=seed)
    assert min(differences) - 1e-12 <= ours.low <= ours.high <= max(differences) + 1e-12


def test_bootstrap_in_several_pieces_equals_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.1 * number for number in range(50)]
    whole = paired_bootstrap_interval(values, n_resamples=300)
    monkeypatch.setattr("morfi.statistics._MOST_COUNTS_AT_ONCE", 350)
    assert paired_bootstrap_interval(values, n_resamples=300) == pytest.approx(whole)


def test_bootstrap_of_equal_differences_has_no_width() -> None:
    assert paired_bootstrap_interval([1, 1, 1], n_resamples=50) == Interval(1.0, 1.0)


@pytest.mark.parametrize("differences", [[], [math.nan], [1.0, math.inf]])
def test_bootstrap_refuses_nothing_and_what_is_not_finite(differences: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_bootstrap_interval(differences)


def test_bootstrap_refuses_no_resamples() -> None:
    with pytest.raises(ValueError, match="n_resamples = 0"):
        paired_bootstrap_interval([1], n_resamples=0)


@pytest.mark.parametrize("chances", [(0.02, 0.02), (0.1, 0.0), (0.2, 0.05)])
@pytest.mark.parametrize("n", [10, 40])
def test_the_adjusted_interval_holds_the_true_difference_as_often_as_it_says(
    n: int, chances: tuple[float, float]
) -> None:
    truth = chances[0] - chances[1]
    draws = np.random.default_rng(1).multinomial(n, [*chances, 1 - sum(chances)], size=2000)
    intervals = [paired_adjusted_interval(int(gained), int(lost), n) for gained, lost, _ in draws]
    assert np.mean([one.low <= truth <= one.high for one in intervals]) > 0.935


def test_the_adjusted_interval_is_even_and_refuses_counts_that_do_not_fit() -> None:
    unchanged = paired_adjusted_interval(0, 0, 10)
    assert unchanged.low == -unchanged.high < 0
    assert paired_adjusted_interval(9, 0, 9).high == 1.0
    for counts in ((-1, 0, 9), (5, 5, 9), (0, 0, 0)):
        with pytest.raises(ValueError, match="out of range"):
            paired_adjusted_interval(*counts)
