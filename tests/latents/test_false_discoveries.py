"""The permutation FDR against all orders one by one; Benjamini-Hochberg against SciPy."""

from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
import scipy.stats
import torch

from morfi.kernels.null import trend_null
from morfi.latents.false_discoveries import Permutations, benjamini_hochberg


@pytest.mark.parametrize("ranks", [(0, 1, 2, 3, 4), (2, 0, 1), (0, 0, 1, 1, 2)])
def test_fdr_is_the_median_over_all_orders(ranks: tuple[int, ...]) -> None:
    n, generator = len(ranks), torch.Generator().manual_seed(0)
    values = torch.randint(0, 6, (60, n), generator=generator).float() + torch.tensor(ranks)
    first, second = torch.triu_indices(n, n, 1)
    signs = (values[:, second] - values[:, first]).sign()
    permutations = Permutations(trend_null(ranks), seed=0)
    permutations.add(signs[:25])
    permutations.add(signs[25:])

    def n_at_least(order: tuple[int, ...], s: int) -> int:
        weights = np.sign([ranks[order[b]] - ranks[order[a]] for a, b in zip(first, second, strict=True)])
        return int((np.abs(signs.numpy() @ weights) >= s).sum())

    orders = list(itertools.permutations(range(n)))
    found = permutations.false_discoveries()
    sizes = {
        abs(int(s)) for s in signs @ (torch.tensor(ranks)[second] - torch.tensor(ranks)[first]).sign().float()
    }
    assert [one.s for one in found] == sorted(sizes - {0}, reverse=True)
    for one in found:
        assert one.n_found == n_at_least(orders[0], one.s)
        expected = statistics.median_low(n_at_least(order, one.s) for order in orders)
        assert one.fdr == pytest.approx(min(1, expected / one.n_found))


def test_more_orders_than_are_tried_one_by_one_are_drawn() -> None:
    permutations = Permutations(trend_null(tuple(range(9))), seed=0)
    permutations.add(torch.ones(4, 36))
    (one,) = permutations.false_discoveries()
    assert (one.s, one.n_found, one.fdr) == (36, 4, 0)


def test_nothing_that_fires_gives_no_fdr() -> None:
    permutations = Permutations(trend_null((0, 1, 2)), seed=0)
    assert permutations.false_discoveries() == ()
    permutations.add(torch.zeros(0, 3))
    assert permutations.false_discoveries() == ()


@pytest.mark.parametrize("q", [0.01, 0.05, 0.5])
def test_benjamini_hochberg_is_scipys(q: float) -> None:
    generator = np.random.default_rng(0)
    for n in (1, 7, 200):
        p = np.concatenate([generator.random(n), generator.random(n) * 0.01])
        expected = scipy.stats.false_discovery_control(p) <= q
        assert benjamini_hochberg(torch.tensor(p), q).tolist() == expected.tolist()
    assert benjamini_hochberg(torch.zeros(0), q).tolist() == []
