"""Streaming rank correlation against SciPy and against its slow reference, in any order of conditions."""

from __future__ import annotations

import random

import pytest
import scipy.stats
import torch

from morfi.kernels.null import trend_null
from morfi.kernels.trend import PairwiseTrend
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
        torch.testing.assert_close(found.rho, expected.rho)
        torch.testing.assert_close(found.mean_abs_rho, expected.mean_abs_rho)
        draw.shuffle(order)


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
