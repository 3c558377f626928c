"""Run with TRITON_INTERPRET=1 by test_trends_triton.py: the kernels of trends beside their references."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from morfi.kernels import trend_triton
from morfi.kernels.encoder import Encoder, Nonzeros, Way
from morfi.kernels.null import trend_null
from morfi.kernels.page import page_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend_reference import trend_reference
from morfi.latents import trend_inputs
from morfi.latents.selection import Criteria, Method
from morfi.latents.trends import find_trends

RANKS = (tuple(range(7)), (1, 0, 2), tuple(range(10)), (0, 0, 1, 1, 2, 2, 2))
KINDS = ("random", "tied", "sparse", "constant")


def resample(n: int, n_latents: int, n_resamples: int) -> float:
    """Compares sums over resamples; returns the largest."""
    generator = torch.Generator().manual_seed(n)
    values = torch.rand(n_latents, n, generator=generator) * (
        torch.rand(n_latents, n, generator=generator) < 0.3
    )
    latent, question = values.nonzero(as_tuple=True)
    starts = torch.searchsorted(latent, torch.arange(n_latents + 1))
    counts = resample_counts([place % 3 for place in range(n)], n_resamples, seed=0)[:, 1:]
    found = trend_triton.resampled_sums(Nonzeros(starts, question, values[latent, question]), counts)
    torch.testing.assert_close(found.double(), values.double() @ counts.double(), rtol=1e-5, atol=1e-5)
    return float(found.max())


def draw(kind: str, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    values = torch.rand(shape, generator=generator)
    if kind == "tied":
        return torch.randint(0, 3, shape, generator=generator).float()
    if kind == "sparse":
        return values * (torch.rand(shape, generator=generator) < 0.3)
    drift = 0.1 * torch.arange(shape[0]).view(-1, *(1 for _ in shape[1:]))
    return values + drift if kind == "random" else torch.ones(shape)


def trend(kind: str, ranks: Sequence[int], size: tuple[int, float]) -> float:
    """Compares all statistics of some resamples and alpha; returns the sum of stabilities."""
    n_columns, alpha = size
    means, null = draw(kind, len(ranks), 3, n_columns), trend_null(tuple(ranks))
    found, expected = trend_triton.reduce_trends(means, null, alpha), trend_reference(means, null, alpha)
    for name in ("s", "a1", "a2", "stability"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), (kind, ranks, name)
    for name in ("rho", "mean_abs_rho"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    return float(found.stability.sum())


def page(kind: str, ranks: Sequence[int]) -> float:
    """Compares Page's sums of a latent, question by question; returns the sum of spreads."""
    values, null = draw(kind, len(ranks), 301), trend_null(tuple(ranks))
    numerator, spread = trend_triton.page_blocks(values, null.midranks)
    n = len(ranks)
    expected = page_reference(values[:, None, :], null)  # every question a latent of its own
    torch.testing.assert_close(numerator.double() + n * (n + 1) ** 2 / 4, expected.L)
    variance = spread.double() / 12 * null.level_spread / (n - 1)
    z = torch.where(variance > 0, numerator / variance.clamp_min(1e-30).sqrt(), 0.0)
    torch.testing.assert_close(z, expected.z)
    return float(spread.sum())


def run_whole(activation: str, method: Method, way: Way | None = None) -> int:
    """Compares `find_trends` with every step on a kernel and on none; returns how many are selected."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 20, generator=generator)
    encoder = Encoder(weights, torch.full((20,), -3.0), activation, k=4 if activation == "topk" else None)
    questions = torch.randn(40, 16, generator=generator) * 1.5
    away = weights[:, 0] / weights[:, 0].norm() - weights[:, 1] / weights[:, 1].norm()
    noise = torch.randn(7, 40, 16, generator=generator) * 0.1
    activations = [questions + step * 0.4 * away + noise[step] for step in range(7)]

    def find(encoder: Encoder) -> Any:
        settings: dict[str, Any] = {"n_resamples": 40, "criteria": Criteria(alpha=0.05), "method": method}
        return find_trends(activations, range(7), encoder, **settings).latents

    expected = find(encoder)
    tensor: Any = torch.Tensor
    kept = trend_inputs.ON_CPU, tensor.is_cuda
    trend_inputs.ON_CPU = trend_inputs.Tiling(latents=16, encoded=9, resampled=28, questions=25)
    tensor.is_cuda = property(lambda self: True)
    try:
        found = find(replace(encoder, way=way))
    finally:
        trend_inputs.ON_CPU, tensor.is_cuda = kept
    for name in expected.column_names:
        one, other = (np.array(table[name].to_pylist(), dtype=float) for table in (found, expected))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
    return sum(found["selected"].to_pylist())


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` gives with NaN
    assert torch.empty(3).isnan().all()
    found = {
        "resampled": [resample(*case) for case in ((37, 5, 300), (1, 1, 1), (64, 3, 256))],
        "stable": [trend(*case) for case in itertools.product(KINDS, RANKS, ((1, 0.05), (300, 0.001)))],
        "paged": [page(*case) for case in itertools.product(KINDS, RANKS)],
        "whole": [
            run_whole("relu", "fdr"),
            run_whole("relu", "bootstrap", "library"),
            run_whole("topk", "page", "fused"),
            run_whole("topk", "fdr", "library"),
        ],
    }
    json.dump(found, sys.stdout)
