"""The null of S against SciPy, against brute force, and against its own definition."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
import scipy.stats
import torch

from morfi.kernels.null import trend_null


def s_of(values: Sequence[float], ranks: tuple[int, ...]) -> int:
    return sum(
        (values[b] > values[a]) - (values[b] < values[a])
        for a, b in itertools.permutations(range(len(ranks)), 2)
        if ranks[a] < ranks[b]
    )


def ties(values: Sequence[float]) -> tuple[int, int]:
    others = [values.count(value) - 1 for value in values]
    return sum(others), sum(n * n for n in others)


@pytest.mark.parametrize("k", [3, 5, 7, 12])
def test_p_values_without_ties_are_kendalls(k: int) -> None:
    draw = random.Random(k)
    null = trend_null(tuple(range(k)))
    for _ in range(20):
        values = draw.sample(range(100), k)
        expected = scipy.stats.kendalltau(range(k), values, method="exact").pvalue
        assert null.p_value(s_of(values, null.ranks)) == pytest.approx(expected, rel=1e-9)


def test_a_perfect_trend_of_seven_has_two_orders_of_5040() -> None:
    assert trend_null(tuple(range(7))).p_value(21) == pytest.approx(2 / math.factorial(7))


@pytest.mark.parametrize(
    "values", [[1, 1, 2, 3, 4], [1, 1, 2, 2, 3], [0, 0, 0, 0, 5], [2, 2, 2, 2, 2], [1, 2, 2, 3, 3]]
)
def test_p_values_with_ties_count_all_orders(values: list[float]) -> None:
    null = trend_null(tuple(range(5)))
    found = [abs(s_of(list(order), null.ranks)) for order in itertools.permutations(values)]
    for s in set(found):
        expected = sum(other >= s for other in found) / len(found)
        assert null.p_value(s, *ties(values)) == pytest.approx(expected)


@pytest.mark.parametrize("ranks", [(0, 0, 1, 1, 2), (0, 1, 2, 2), (0, 0, 0, 1, 1, 1)])
def test_p_values_of_replicates_count_all_orders(ranks: tuple[int, ...]) -> None:
    null = trend_null(ranks)
    found = [abs(s_of(list(order), ranks)) for order in itertools.permutations(range(len(ranks)))]
    for s in set(found):
        assert null.p_value(s) == pytest.approx(sum(other >= s for other in found) / len(found))
    assert null.midranks.tolist() == scipy.stats.rankdata(ranks).tolist()


@pytest.mark.parametrize("ranks", [(0, 0, 1, 1, 2), (0, 0, 1, 1, 2, 2), (0, 0, 1, 2, 2, 3)])
def test_no_p_value_of_replicates_is_too_small_whichever_values_are_equal(ranks: tuple[int, ...]) -> None:
    null, n = trend_null(ranks), len(ranks)
    for steps in itertools.product((0, 1), repeat=n - 1):  # every order of groups of equal values
        values = [0, *itertools.accumulate(steps)]
        found = Counter(abs(s_of(list(order), ranks)) for order in itertools.permutations(values))
        for s in found:
            exact = sum(found[other] for other in found if other >= s) / found.total()
            assert null.p_value(s, *ties(values)) >= exact - 1e-12


def test_many_tied_conditions_have_kendalls_variance() -> None:
    draw = random.Random(3)
    ranks = tuple(rank for rank in range(7) for _ in range(3))
    null = trend_null(ranks)
    values = [float(draw.randrange(6)) for _ in ranks]
    a1, a2 = ties(values)
    shuffled = [s_of(draw.sample(values, len(values)), ranks) for _ in range(4000)]
    expected = sum(s * s for s in shuffled) / len(shuffled)
    found = float(null.variance(torch.tensor(float(a1)), torch.tensor(float(a2))))
    assert found == pytest.approx(expected, rel=0.1)
    s = s_of(values, ranks)
    assert null.p_value(s, a1, a2) == pytest.approx(
        sum(abs(other) >= abs(s) for other in shuffled) / len(shuffled), abs=0.04
    )


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("ranks", [tuple(range(7)), tuple(range(10)), (0, 0, 1, 1, 2, 2)])
def test_the_critical_value_is_the_smallest_that_passes(ranks: tuple[int, ...], alpha: float) -> None:
    null, draw = trend_null(ranks), random.Random(1)
    for _ in range(50):
        a1, a2 = ties([draw.randrange(5) for _ in ranks])
        bound = float(null.critical(alpha, torch.tensor([float(a1)]), torch.tensor([float(a2)])))
        for s in range(null.n_pairs + 1):
            assert (s >= bound) == (null.p_value(s, a1, a2) <= alpha)
