"""Page's test from non-zeros, against its reference, SciPy, and orders drawn within questions."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats
import torch

from morfi.kernels.encoder import Nonzeros
from morfi.kernels.null import trend_null
from morfi.kernels.page import PageSums, PageTrend, page_reference

N, T = 31, 5


def draw(kind: str, n_conditions: int) -> torch.Tensor:
    """Activations [C, N, T], none negative."""
    generator = torch.Generator().manual_seed(n_conditions)
    shape = (n_conditions, N, T)
    values = torch.rand(shape, generator=generator) + torch.arange(n_conditions)[:, None, None] * 0.05
    if kind == "tied":
        return torch.randint(0, 3, shape, generator=generator).float()
    if kind == "sparse":
        return values * (torch.rand(shape, generator=generator) < 0.2)
    return values if kind == "random" else torch.ones(shape)


def nonzeros(activations: torch.Tensor) -> Nonzeros:
    """Of activations [n, T]."""
    latent, question = activations.T.nonzero(as_tuple=True)
    starts = torch.searchsorted(latent, torch.arange(activations.shape[1] + 1))
    return Nonzeros(starts, question, activations.T[latent, question])


def page(activations: torch.Tensor, ranks: tuple[int, ...]) -> PageTrend:
    sums = PageSums(trend_null(ranks), slice(0, T))
    sums.add(slice(0, T), [nonzeros(one) for one in activations], activations.shape[1])
    return sums.reduce(activations.shape[1])


@pytest.mark.parametrize("ranks", [tuple(range(7)), (2, 0, 1), (0, 0, 1, 1, 2, 2, 2)])
@pytest.mark.parametrize("kind", ["random", "tied", "sparse", "constant"])
def test_non_zeros_give_the_reference(kind: str, ranks: tuple[int, ...]) -> None:
    activations = draw(kind, len(ranks))
    found, expected = page(activations, ranks), page_reference(activations, trend_null(ranks))
    for name in ("L", "z", "p"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "tied", "sparse", "constant"])
def test_l_is_scipys_and_so_is_p_without_ties(kind: str) -> None:
    activations = draw(kind, 7)
    found = page(activations, tuple(range(7)))
    for latent in range(T):
        expected = scipy.stats.page_trend_test(activations[:, :, latent].T.numpy(), method="asymptotic")
        assert float(found.L[latent]) == pytest.approx(expected.statistic)
        if kind == "random":
            # SciPy's is one-sided, for rising values.
            assert float(found.z[latent]) == pytest.approx(scipy.stats.norm.isf(expected.pvalue), rel=1e-6)
            p = 2 * min(expected.pvalue, 1 - expected.pvalue)
            assert float(found.p[latent]) == pytest.approx(p, rel=1e-4)
        if kind == "constant":
            assert (float(found.z[latent]), float(found.p[latent])) == (0, 1)


@pytest.mark.parametrize("kind", ["tied", "sparse"])
def test_p_with_ties_is_that_of_orders_drawn_within_questions(kind: str) -> None:
    activations, generator = draw(kind, 5), np.random.default_rng(0)
    found = page(activations, tuple(range(5)))
    q = np.arange(1, 6)
    for latent in range(T):
        ranks = scipy.stats.rankdata(activations[:, :, latent].T.numpy(), axis=1)  # [N, C]
        drawn = generator.permuted(np.broadcast_to(ranks, (4000, *ranks.shape)), axis=2) @ q
        l_drawn = drawn.sum(1)
        mean = N * 5 * 36 / 4
        z = (float(found.L[latent]) - mean) / l_drawn.std()
        assert float(found.z[latent]) == pytest.approx(z, rel=0.06, abs=0.02)
        more = (abs(l_drawn - mean) >= abs(float(found.L[latent]) - mean) - 1e-9).mean()
        less = (abs(l_drawn - mean) > abs(float(found.L[latent]) - mean) + 1e-9).mean()
        assert less - 0.04 <= float(found.p[latent]) <= more + 0.04


def test_any_chunks_in_any_order_give_the_same() -> None:
    activations, null, chance = draw("sparse", 4), trend_null((1, 0, 3, 2)), random.Random(0)
    expected = page(activations, null.ranks)
    for _ in range(10):
        at = sorted(chance.sample(range(1, N), 3))
        split = chance.randrange(1, T)
        spans = [*zip([0, *at], [*at, N], strict=True)]
        cells = [(span, latents) for span in spans for latents in (slice(0, split), slice(split, T))]
        chance.shuffle(cells)
        sums = PageSums(null, slice(0, T))
        for (start, stop), latents in cells:
            sums.add(latents, [nonzeros(one[start:stop, latents]) for one in activations], stop - start)
        found = sums.reduce(N)
        for name in ("L", "z", "p"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_questions_that_are_missing_or_came_twice_are_refused() -> None:
    activations = [nonzeros(one) for one in draw("sparse", 3)]
    sums = PageSums(trend_null((0, 1, 2)), slice(0, T))
    with pytest.raises(ValueError, match="latent 0 has seen 0 of 31 questions"):
        sums.reduce(N)
    sums.add(slice(0, T), activations, N)
    sums.add(slice(0, T), activations, N)
    with pytest.raises(ValueError, match="latent 0 has seen 62 of 31 questions"):
        sums.reduce(N)
