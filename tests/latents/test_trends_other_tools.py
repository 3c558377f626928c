"""Every latent against SciPy and pymannkendall, on random, tied, sparse and constant data."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pymannkendall
import pytest
import scipy.stats
import torch

from morfi.kernels.encoder import Encoder
from morfi.kernels.null import trend_null
from morfi.latents.trends import find_trends

N, D_SAE = 40, 24


def draw(kind: str, n_conditions: int) -> torch.Tensor:
    """Latents [C, N, F], none negative."""
    generator = torch.Generator().manual_seed(n_conditions)
    shape = (n_conditions, N, D_SAE)
    drift = torch.arange(n_conditions)[:, None, None] * torch.randn(D_SAE, generator=generator) * 0.02
    if kind == "random":
        return (torch.rand(shape, generator=generator) + drift + 1).clamp_min(0)
    if kind == "tied":  # of few different means
        return torch.randint(0, 4, (n_conditions, 1, D_SAE), generator=generator).float().expand(shape) + 1
    if kind == "sparse":  # of which many never fire
        return torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.01)
    return torch.ones(shape)


@pytest.mark.parametrize("n_conditions", [4, 7, 12])
@pytest.mark.parametrize("kind", ["random", "tied", "sparse", "constant"])
def test_every_latent_is_scipys_and_pymannkendalls(kind: str, n_conditions: int) -> None:
    latents = draw(kind, n_conditions)
    encoder = Encoder(torch.eye(D_SAE), torch.zeros(D_SAE))
    levels = [float(level) for level in range(n_conditions)]
    found = find_trends(list(latents), levels, encoder, n_resamples=5).latents.to_pylist()
    null, n_tied = trend_null(tuple(range(n_conditions))), 0
    for latent, row in enumerate(found):
        series = np.array(row["means"])
        assert series == pytest.approx(latents[:, :, latent].double().mean(1).numpy(), rel=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constant series
            other = pymannkendall.original_test(series)
            kendall = scipy.stats.kendalltau(levels, series, method="asymptotic")
            rho = scipy.stats.spearmanr(levels, series).statistic
        assert row["s"] == other.s
        assert row["slope"] == pytest.approx(other.slope, rel=1e-5, abs=1e-7)
        assert row["slope"] == pytest.approx(
            scipy.stats.theilslopes(series, levels).slope, rel=1e-5, abs=1e-7
        )
        n_equal = [list(series).count(value) - 1 for value in series]
        ties = torch.tensor([float(sum(n_equal)), float(sum(n * n for n in n_equal))])
        n_tied += sum(n_equal) > 0
        assert float(null.variance(*ties)) == pytest.approx(other.var_s, abs=1e-4)
        if other.var_s == 0:
            assert (row["s"], row["rho"], row["p_exact"]) == (0, 0, 1)
            continue
        assert row["rho"] == pytest.approx(rho, abs=1e-6)
        z = row["s"] / math.sqrt(other.var_s)  # SciPy's has no continuity correction
        assert 2 * scipy.stats.norm.sf(abs(z)) == pytest.approx(kendall.pvalue, abs=1e-9)
        if sum(n_equal) == 0:
            exact = scipy.stats.kendalltau(levels, series, method="exact").pvalue
            assert row["p_exact"] == pytest.approx(exact, rel=1e-9)
        elif n_conditions > 8:  # where ties make ours normal too
            assert row["p_exact"] == pytest.approx(other.p, rel=1e-5)
    assert (n_tied > 0) == (kind != "random")
