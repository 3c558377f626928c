"""Run with TRITON_INTERPRET=1 by test_trends_triton.py: the kernels of trends beside their references."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from morfi.kernels import encode_triton, trend_triton
from morfi.kernels.encoder import ACTIVATIONS, Encoder, Nonzeros, encode_reference, prepare, tiles
from morfi.kernels.null import trend_null
from morfi.kernels.page import page_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend_reference import trend_reference
from morfi.latents import trend_inputs
from morfi.latents.selection import Criteria, Method
from morfi.latents.trends import find_trends

# Questions, d_model, d_sae and tile: odd ones, more than a block, and sixteens that need no padding.
SHAPES = ((53, 24, 77, 60), (130, 72, 300, 300), (1, 8, 3, 200), (144, 64, 288, 144))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RANKS = (tuple(range(7)), (1, 0, 2), tuple(range(10)), (0, 0, 1, 1, 2, 2, 2))
KINDS = ("random", "tied", "sparse", "constant")


def widen_bfloat16() -> None:
    """Lets the interpreter multiply bfloat16: it holds their bits as integers, and would multiply those."""
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, _widened(a), _widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16  # the upper half of the same float32
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


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


def encode(
    activation: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    bias: float,
    density: float = 1 / 64,
) -> int:
    """Compares the non-zeros of every tile; returns how many there were."""
    n, d_model, d_sae, tile = shape
    encoder = make_encoder(activation, d_model, d_sae, dtype, bias)
    x = prepare(torch.randn(n, d_model, generator=torch.Generator().manual_seed(1)), encoder)
    plain = Encoder(**{name: getattr(encoder, name) for name in encoder.__slots__} | {"b_dec": None})
    expected = encode_reference(x, plain)
    limits = None
    if activation == "topk":
        dense_tiles = [encode_triton.encode_dense(x, encoder, latents) for latents in tiles(encoder, tile)]
        pre = torch.cat(dense_tiles, 1)
        torch.testing.assert_close(
            pre, x.float() @ encoder.W_enc.float() + encoder.b_enc, rtol=1e-4, atol=1e-4
        )
        limits = pre.topk(encoder.k or 0, 1).values[:, -1]
    n_found = 0
    for latents in tiles(encoder, tile):
        found = encode_triton.start_tile(x, encoder, latents, limits, density=density)()
        assert (found.starts.dtype, found.questions.dtype) == (torch.int64, torch.int64)
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


def run_whole(activation: str, method: Method) -> int:
    """Compares `find_trends` with every step on a kernel and on none; returns how many are selected."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 20, generator=generator)
    encoder = Encoder(weights, torch.full((20,), -3.0), activation, k=4 if activation == "topk" else None)
    questions = torch.randn(40, 16, generator=generator) * 1.5
    away = weights[:, 0] / weights[:, 0].norm() - weights[:, 1] / weights[:, 1].norm()
    noise = torch.randn(7, 40, 16, generator=generator) * 0.1
    activations = [questions + step * 0.4 * away + noise[step] for step in range(7)]

    def find() -> Any:
        settings: dict[str, Any] = {"n_resamples": 40, "criteria": Criteria(alpha=0.05), "method": method}
        return find_trends(activations, range(7), encoder, **settings).latents

    expected = find()
    tensor: Any = torch.Tensor
    kept = trend_inputs.ON_CPU, tensor.is_cuda
    trend_inputs.ON_CPU = trend_inputs.Tiling(latents=16, encoded=9, resampled=28, questions=25)
    tensor.is_cuda = property(lambda self: True)
    try:
        found = find()
    finally:
        trend_inputs.ON_CPU, tensor.is_cuda = kept
    for name in expected.column_names:
        one, other = (np.array(table[name].to_pylist(), dtype=float) for table in (found, expected))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=name)
    return sum(found["selected"].to_pylist())


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` gives with NaN
    assert torch.empty(3).isnan().all()
    widen_bfloat16()
    cases = [
        # The smallest shape would keep nothing where latents are rare.
        (activation, shape, dtype, -4.0 if shape[0] > 1 and (number + number // 4) % 2 == 0 else 4.0)
        for number, (activation, dtype, shape) in enumerate(itertools.product(ACTIVATIONS, DTYPES, SHAPES))
    ]
    found = {
        "encoded": [encode(*case) for case in cases],
        "silent": [encode("relu", shape, torch.float32, -100.0) for shape in SHAPES[:2]],
        "empty": [encode("jumprelu", (0, 24, 77, 60), torch.float32, 4.0)],
        "crowded": [encode("relu", (144, 64, 288, 144), torch.bfloat16, 4.0, density=0.0)],
        "resampled": [resample(*case) for case in ((37, 5, 300), (1, 1, 1), (64, 3, 256))],
        "stable": [trend(*case) for case in itertools.product(KINDS, RANKS, ((1, 0.05), (300, 0.001)))],
        "paged": [page(*case) for case in itertools.product(KINDS, RANKS)],
        "whole": [run_whole("relu", "fdr"), run_whole("relu", "bootstrap"), run_whole("topk", "page")],
    }
    json.dump(found, sys.stdout)
