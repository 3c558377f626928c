"""Streaming rank correlation against SciPy and against its slow reference, in any order of conditions."""

from __future__ import annotations

import random
import statistics

import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.kernels.level_means import level_means
from morfi.kernels.null import trend_null
from morfi.kernels.trend import PairwiseTrend, reduce_trends
from morfi.kernels.trend_reference import Trends, trend_reference

KINDS = ("random", "tied", "sparse", "constant")


def draw_means(kind: str, n_conditions: int, *, n_latents: int = 12, n_columns: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n_conditions)
    shape = (n_conditions, n_latents, n_columns)
    if kind == "random":
        return torch.randn(shape, generator=generator) + torch.arange(n_conditions)[:, None, None] * 0.7
    if kind == "tied":
        return torch.randint(0, 3, shape, generator=generator).float()
    if kind == "sparse":
        return torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
    return torch.ones(shape)


def stream(means: torch.Tensor, ranks: tuple[int, ...], order: list[int], alpha: float) -> Trends:
    state = PairwiseTrend(trend_null(ranks))
    for condition in order:
        state.add(condition, means[condition])
    return state.reduce(alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("ranks", [tuple(range(7)), tuple(range(3)), tuple(range(10)), (0, 0, 1, 1, 2, 2, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_equals_the_reference_in_any_order(kind: str, ranks: tuple[int, ...], alpha: float) -> None:
    means = draw_means(kind, len(ranks))
    expected = trend_reference(means, trend_null(ranks), alpha)
    order, draw = list(range(len(ranks))), random.Random(0)
    for _ in range(3):
        found = stream(means, ranks, order, alpha)
        assert torch.equal(found.s, expected.s)
        assert torch.equal(found.a1, expected.a1)
        assert torch.equal(found.a2, expected.a2)
        assert torch.equal(found.stability, expected.stability)
        shuffled = reduce_trends(means[order], trend_null(tuple(ranks[place] for place in order)), alpha)
        torch.testing.assert_close(shuffled.rho, expected.rho)
        torch.testing.assert_close(shuffled.mean_abs_rho, expected.mean_abs_rho)
        draw.shuffle(order)


@pytest.mark.parametrize("kind", KINDS)
def test_one_training_per_level_is_ranked_by_itself(kind: str) -> None:
    means, ranks = draw_means(kind, 7), (3, 0, 6, 2, 5, 1, 4)
    found = reduce_trends(means, trend_null(ranks), 0.05)
    expected = stream(means, ranks, list(range(7)), 0.05)
    for name in ("s", "rho", "a1", "a2", "stability", "mean_abs_rho"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


@settings(max_examples=30, deadline=None)
@given(kind=st.sampled_from(KINDS), sizes=st.lists(st.integers(1, 4), min_size=3, max_size=7), data=st.data())
def test_replicates_that_agree_leave_rho_as_it_was(kind: str, sizes: list[int], data: st.DataObject) -> None:
    means = draw_means(kind, len(sizes)) / 3
    ranks = data.draw(st.permutations([level for level, size in enumerate(sizes) for _ in range(size)]))
    found = reduce_trends(means[ranks], trend_null(tuple(ranks)), 0.05)
    expected = reduce_trends(means, trend_null(tuple(range(len(sizes)))), 0.05)
    assert torch.equal(found.rho, expected.rho)
    assert torch.equal(found.mean_abs_rho, expected.mean_abs_rho)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=3, max_size=9), data=st.data(), seed=st.integers(0, 999))
def test_rho_of_replicates_is_scipys_of_the_levels_means(
    sizes: list[int], data: st.DataObject, seed: int
) -> None:
    ranks = data.draw(st.permutations([level for level, size in enumerate(sizes) for _ in range(size)]))
    means = torch.randn(len(ranks), 2, 4, generator=torch.Generator().manual_seed(seed))
    found = reduce_trends(means, trend_null(tuple(ranks)), 0.05)
    for latent in range(2):
        rho = []
        for column in means[:, latent].double().T.tolist():
            levels = [
                statistics.fmean(value for value, rank in zip(column, ranks, strict=True) if rank == level)
                for level in range(len(sizes))
            ]
            rho.append(scipy.stats.spearmanr(range(len(sizes)), levels).statistic)
        assert found.rho[latent] == pytest.approx(rho[0], abs=1e-6)
        assert found.mean_abs_rho[latent] == pytest.approx(statistics.fmean(map(abs, rho[1:])), abs=1e-6)


def test_how_far_replicates_scatter_does_not_bound_rho() -> None:
    scatter = torch.tensor([-3.0, 0.0, 3.0])
    means = (torch.arange(7.0)[:, None] + scatter).view(-1, 1, 1).expand(-1, 1, 2)
    null = trend_null(tuple(level for level in range(7) for _ in range(3)))
    found = reduce_trends(means, null, 0.05)
    assert torch.equal(level_means(means, null)[:, 0, 0], torch.arange(7.0))
    assert (found.rho.item(), found.mean_abs_rho.item()) == (1, 1)
    of_trainings = scipy.stats.spearmanr(null.ranks, means[:, 0, 0].tolist()).statistic
    assert of_trainings < 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_rho_and_p_are_scipys(kind: str) -> None:
    means = draw_means(kind, 7)
    null = trend_null(tuple(range(7)))
    found = stream(means, null.ranks, list(range(7)), 0.05)
    for latent in range(means.shape[1]):
        series = means[:, latent, 0].tolist()
        if len(set(series)) == 1:
            assert (found.rho[latent].item(), found.s[latent].item()) == (0, 0)
            continue
        assert found.rho[latent] == pytest.approx(scipy.stats.spearmanr(range(7), series).statistic, abs=1e-6)
        if len(set(series)) == 7:
            p = null.p_value(int(found.s[latent]))
            assert p == pytest.approx(scipy.stats.kendalltau(range(7), series, method="exact").pvalue)


def test_a_condition_that_comes_twice_or_is_missing_is_refused() -> None:
    means = draw_means("random", 3)
    state = PairwiseTrend(trend_null((0, 1, 2)))
    state.add(0, means[0])
    with pytest.raises(ValueError, match="condition 0 came twice"):
        state.add(0, means[0])
    with pytest.raises(ValueError, match="1 of 3 conditions came"):
        state.reduce(0.05)
