"""Run with TRITON_INTERPRET=1 by test_trends_triton.py: encode, sums, trend and Page kernels by their references."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence

import torch

from morfi.kernels import encode_triton, trend_triton
from morfi.kernels.encode import ACTIVATIONS, Encoder, Nonzeros, encode_reference, prepare, row_limits, tiles
from morfi.kernels.null import trend_null
from morfi.kernels.page import page_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend import trend_reference

SHAPES = ((53, 24, 77), (130, 72, 131), (1, 8, 3))  # questions, d_model, d_sae
RANKS = (tuple(range(7)), (1, 0, 2), tuple(range(10)), (0, 0, 1, 1, 2, 2, 2))
KINDS = ("random", "tied", "sparse", "constant")


def make_encoder(activation: str, d_model: int, d_sae: int, dtype: torch.dtype, bias: float) -> Encoder:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return Encoder(
        normal(d_model, d_sae).to(dtype),
        normal(d_sae) + bias,
        activation,
        threshold=normal(d_sae) if activation == "jumprelu" else None,
        k=min(5, d_sae) if activation == "topk" else None,
        r_mag=normal(d_sae) * 0.1 if activation == "gated" else None,
        b_mag=normal(d_sae) if activation == "gated" else None,
        b_dec=normal(d_model),
    )


def dense(found: Nonzeros, n: int) -> torch.Tensor:
    """float32 [T, n]; stops unless the non-zeros come in order."""
    values = torch.zeros(len(found.starts) - 1, n)
    for row, (start, stop) in enumerate(itertools.pairwise(found.starts.tolist())):
        assert found.questions[start:stop].diff().gt(0).all()
        values[row, found.questions[start:stop]] = found.values[start:stop]
    return values


def encode(activation: str, shape: tuple[int, int, int], dtype: torch.dtype, bias: float, tile: int) -> int:
    """Compares the non-zeros of every tile; returns how many there were."""
    n, d_model, d_sae = shape
    encoder = make_encoder(activation, d_model, d_sae, dtype, bias)
    x = prepare(torch.randn(n, d_model, generator=torch.Generator().manual_seed(1)), encoder)
    plain = Encoder(**{name: getattr(encoder, name) for name in encoder.__slots__} | {"b_dec": None})
    expected = encode_reference(x, plain)
    limits = None
    if activation == "topk":
        best = [encode_triton.encode_dense(x, encoder, latents) for latents in tiles(encoder, tile)]
        limits = torch.cat(best, 1).topk(encoder.k or 0, 1).values[:, -1]
        torch.testing.assert_close(limits, row_limits(x, encoder, tile), rtol=1e-4, atol=1e-4)
    n_found = 0
    for latents in tiles(encoder, tile):
        found = encode_triton.encode_tile(x, encoder, latents, limits, density=1 / 64)
        # A value next to its threshold may be kept by one side alone.
        close = torch.isclose(dense(found, n).T, expected[:, latents], rtol=1e-3, atol=1e-3)
        assert int((~close).sum()) <= close.numel() // 500, (activation, shape, dtype, int((~close).sum()))
        n_found += len(found.values)
    if activation == "topk" and bias > 0:
        assert n_found == n * (encoder.k or 0)
    return n_found


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


def trend(kind: str, ranks: Sequence[int], n_columns: int, alpha: float) -> float:
    """Compares all statistics; returns the sum of stabilities."""
    means, null = draw(kind, len(ranks), 5, n_columns), trend_null(tuple(ranks))
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


if __name__ == "__main__":
    dtypes = (torch.float32, torch.float16)  # the interpreter multiplies the bits of bfloat16 as integers
    cases = itertools.product(ACTIVATIONS, SHAPES, dtypes, (-4.0, 4.0), (60, 200))
    found = {
        "encoded": [encode(*case) for case in cases],
        "resampled": [resample(*case) for case in ((37, 5, 300), (1, 1, 1), (64, 3, 256))],
        "stable": [trend(*case) for case in itertools.product(KINDS, RANKS, (1, 300), (0.05, 0.001))],
        "paged": [page(*case) for case in itertools.product(KINDS, RANKS)],
    }
    json.dump(found, sys.stdout)
