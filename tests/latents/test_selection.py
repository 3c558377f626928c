"""The rule "fdr" against its definition, one latent, order and resample at a time; and its edges."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder, encode_reference
from morfi.kernels.resample import resample_counts
from morfi.latents.selection import Criteria
from morfi.latents.trends import TrendResult, find_trends

D_MODEL, D_SAE, N, N_RESAMPLES = 6, 24, 30, 40


def make_conditions(levels: Sequence[float], gap: float, seed: int) -> tuple[list[torch.Tensor], Encoder]:
    """Conditions [N, D_MODEL] that move along one direction, each with a noise of its own."""
    n, generator = len(levels), torch.Generator().manual_seed(seed)
    weights = torch.randn(D_MODEL, D_SAE, generator=generator)
    questions = torch.randn(N, D_MODEL, generator=generator)
    drift = torch.randn(n, D_MODEL, generator=generator) * 0.1
    drift += gap * torch.tensor(levels)[:, None] * torch.randn(D_MODEL, generator=generator)
    own = torch.randn(n, N, D_MODEL, generator=generator) * 0.05
    return list(questions + drift[:, None] + own), Encoder(weights, torch.full((D_SAE,), -1.0))


def s_of(series: Sequence[float], levels: Sequence[float]) -> int:
    return sum(
        ((series[b] > series[a]) - (series[b] < series[a]))
        * ((levels[b] > levels[a]) - (levels[b] < levels[a]))
        for a, b in itertools.combinations(range(len(levels)), 2)
    )


def rho_of(series: Sequence[float], levels: Sequence[float]) -> float:
    own = [[value for value, at in zip(series, levels, strict=True) if at == level] for level in set(levels)]
    means = [statistics.fmean(one) for one in own]
    return scipy.stats.spearmanr(list(set(levels)), means).statistic if len(set(means)) > 1 else 0.0


def slow(
    activations: Sequence[torch.Tensor], levels: Sequence[float], encoder: Encoder, criteria: Criteria
) -> list[bool]:
    """Which latents are selected."""
    latents = torch.stack([encode_reference(x, encoder).double() for x in activations])
    counts = resample_counts([0] * N, N_RESAMPLES, 0).double()
    means = (torch.einsum("nb,cnf->fbc", counts, latents) / N).float().tolist()  # [F, B, C]
    fires = (latents > 0).double().mean(1).amax(0) >= criteria.min_firing
    orders = list(itertools.permutations(levels))
    p = {s: statistics.mean(abs(s_of(range(len(levels)), order)) >= s for order in orders) for s in range(16)}
    sizes = [[abs(s_of(means[f][0], order)) for f in range(D_SAE) if fires[f]] for order in orders]
    least = math.inf
    has_replicates = len(set(levels)) < len(levels)
    for s in range(1, 16):
        n_found = sum(size >= s for size in sizes[0])
        shuffled = statistics.median_low(sum(size >= s for size in one) for one in sizes)
        rates = [min(1, shuffled / n_found), p[s]] if n_found else [math.inf]
        if has_replicates and n_found:
            rates.append(p[s] * int(fires.sum()) / n_found)
        if max(rates) <= criteria.fdr:
            least = min(least, s)
    selected = []
    for latent, (full, *drawn) in enumerate(means):
        s = s_of(full, levels)
        kept = np.mean([s_of(one, levels) * s > 0 for one in drawn])
        rho = [rho_of(one, levels) for one in drawn]
        passes = abs(s) >= least and kept >= criteria.stability and np.mean(np.abs(rho)) >= criteria.rho_min
        selected.append(bool(fires[latent]) and bool(passes))
    return selected


@pytest.mark.parametrize(
    ("levels", "gap"),
    [(range(5), 0.2), ((0, 1.5, 2, 10, 11), 0.1), ((0, 1, 2, 0, 1), 0.4), (range(5), 0)],
)
@pytest.mark.parametrize("most", [0.02, 0.2, 1.0])
def test_what_is_selected_is_as_defined(levels: Sequence[float], gap: float, most: float) -> None:
    activations, encoder = make_conditions(levels, gap, seed=len(levels))
    criteria = Criteria(fdr=most, rho_min=0.59, stability=0.79)
    found = find_trends(activations, levels, encoder, criteria=criteria, n_resamples=N_RESAMPLES)
    selected = found.latents["selected"].to_pylist()
    assert selected == slow(activations, levels, encoder, criteria)
    if gap and most == 0.2:
        assert 0 < sum(selected) < D_SAE


@settings(max_examples=20, deadline=None)
@given(
    n=st.integers(3, 7), gap=st.sampled_from([0.0, 0.1, 0.5]), most=st.floats(0, 1), seed=st.integers(0, 999)
)
def test_everything_selected_has_the_rate_and_the_p_that_was_asked_for(
    n: int, gap: float, most: float, seed: int
) -> None:
    activations, encoder = make_conditions(range(n), gap, seed)
    result = find_trends(activations, range(n), encoder, criteria=Criteria(fdr=most), n_resamples=20)
    rates = {one.s: one.fdr for one in result.fdr}
    for row in result.latents.to_pylist():
        if row["selected"]:
            assert result.smallest_s is not None
            assert abs(row["s"]) >= result.smallest_s
    if result.smallest_s is None:
        assert result.n_selected == 0
    else:
        assert rates[result.smallest_s] <= most
    assert result.is_descriptive == (most < 2 / math.factorial(n))


@pytest.mark.parametrize(("n", "attainable"), [(3, 1 / 3), (4, 1 / 12), (5, 1 / 60)])
def test_what_so_few_orders_cannot_tell_is_not_selected_by_accident(n: int, attainable: float) -> None:
    """All latents rise together, as one drift of all would make them: shuffles rarely have them in order."""
    x = torch.rand(N, D_SAE) + 1
    activations = [x * (1 + 0.1 * step) for step in range(n)]

    def find(most: float) -> TrendResult:
        encoder = Encoder(torch.eye(D_SAE), torch.zeros(D_SAE))
        return find_trends(activations, range(n), encoder, criteria=Criteria(fdr=most), n_resamples=20)

    below, above = find(attainable * 0.99), find(attainable * 1.01)
    assert below.fdr[0].fdr == 0
    assert (below.n_selected, below.smallest_s, below.is_descriptive) == (0, None, True)
    assert (above.n_selected, above.is_descriptive) == (D_SAE, False)


@pytest.mark.parametrize("n", [1, 2])
def test_one_condition_and_two_are_refused(n: int) -> None:
    activations, encoder = make_conditions(range(n), 0.1, seed=0)
    with pytest.raises(InputError, match="a trend needs at least three different ones"):
        find_trends(activations, range(n), encoder)


def test_an_sae_of_one_latent() -> None:
    x = torch.rand(N, 1, generator=torch.Generator().manual_seed(0)) + 1
    encoder = Encoder(torch.ones(1, 1), torch.zeros(1))
    rising = find_trends([x * (1 + step) for step in range(5)], range(5), encoder, n_resamples=20)
    assert (rising.n_selected, rising.smallest_s) == (1, 10)
    still = find_trends([x] * 5, range(5), encoder, n_resamples=20)
    assert (still.n_selected, still.smallest_s, still.fdr) == (0, None, ())


def test_ties_count_for_neither_side() -> None:
    """Latents whose conditions tie in all but one pair have |S| of 1 to 6, and none is selected."""
    steps = torch.eye(7) * 0.5 + 1  # one condition above the others
    activations = [step.expand(N, 7) for step in steps]
    found = find_trends(activations, range(7), Encoder(torch.eye(7), torch.zeros(7)), n_resamples=20)
    assert sorted(found.latents["s"].to_pylist()) == [-6, -4, -2, 0, 2, 4, 6]
    assert found.n_selected == 0


def test_the_order_of_many_conditions_changes_nothing_that_is_drawn() -> None:
    activations, encoder = make_conditions(range(9), 0.05, seed=3)
    expected = find_trends(activations, range(9), encoder, n_resamples=20)
    order = [3, 8, 0, 5, 1, 7, 2, 6, 4]
    found = find_trends([activations[place] for place in order], order, encoder, n_resamples=20)
    assert (found.fdr, found.smallest_s) == (expected.fdr, expected.smallest_s)
    assert found.latents["selected"].to_pylist() == expected.latents["selected"].to_pylist()


def test_no_resample_asks_for_a_p_value() -> None:
    """A trend that some resamples have out of order is kept by its sign, and lost to the rule of p-values."""
    activations, encoder = make_conditions(range(7), 0.06, seed=11)
    found: dict[str, Any] = {
        method: find_trends(activations, range(7), encoder, method=method, n_resamples=200).latents
        for method in ("fdr", "bootstrap")
    }
    kept, asked = (np.array(found[method]["selected"].to_pylist()) for method in ("fdr", "bootstrap"))
    assert not (asked & ~kept).any()
    assert (kept & ~asked).any()
