"""Resampled sums, the trends of their means, and Page's ranks within questions, on a GPU.

`resampled_sums_kernel` adds, for a latent and a block of resamples, the rows of the counts that the latent's
few non-zeros point at; the counts are bytes and stay in the L2 cache. `trend_kernel` compares the
conditions' means pair by pair for a latent, a block of resamples at a time, and keeps two sums over
resamples.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from morfi.kernels.encode_fused import in_sixteens
from morfi.kernels.encoder import Nonzeros
from morfi.kernels.level_means import with_rho_of_levels
from morfi.kernels.null import TrendNull, normal_quantile
from morfi.kernels.trend_reference import Trends

BLOCK = 256  # resamples, or questions, at a time
ROWS = 16  # non-zeros of a latent at a time, so that as many rows of the counts are on their way at once


@triton.jit
def resampled_sums_kernel(
    starts,
    questions,
    values,
    counts,
    sums,
    n_resamples,
    n_columns,
    counts_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a latent and BLOCK resamples: sums [T, n_resamples] of values times counts."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    stop = tl.load(starts + latent + 1)
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for start in range(tl.load(starts + latent), stop, ROWS):
        places = start + tl.arange(0, ROWS)
        is_place = places < stop
        rows = tl.load(questions + places, mask=is_place, other=0) * counts_stride
        inside = is_place[:, None] & (columns < n_columns)[None, :]
        drawn = tl.load(counts + rows[:, None] + columns[None, :], mask=inside, other=0)
        total += drawn.to(tl.float32) * tl.load(values + places, mask=is_place, other=0.0)[:, None]
    tl.store(sums + latent * n_resamples + columns, tl.sum(total, 0), mask=columns < n_resamples)


def resampled_sums(found: Nonzeros, counts: torch.Tensor) -> torch.Tensor:
    """The result of `morfi.kernels.encode.resampled_sums` for `counts` [n, R] of any dtype."""
    n_latents, n_resamples = len(found.starts) - 1, counts.shape[1]
    sums = torch.empty(n_latents, n_resamples, device=counts.device)
    wide = in_sixteens(counts)
    if sums.numel():
        resampled_sums_kernel[(n_latents, triton.cdiv(n_resamples, BLOCK))](
            found.starts,
            found.questions,
            found.values,
            wide,
            sums,
            n_resamples,
            wide.shape[1],
            wide.stride(0),
            ROWS=ROWS,
            BLOCK=BLOCK,
        )
    return sums


@triton.jit
def _compare(values, stride, midranks, inside, C: tl.constexpr, BLOCK: tl.constexpr):
    """S, twice Spearman's numerator, a1 and a2 of BLOCK series, whose C values lie `stride` apart."""
    s = tl.zeros([BLOCK], dtype=tl.float32)
    d = tl.zeros([BLOCK], dtype=tl.float32)
    a1 = tl.zeros([BLOCK], dtype=tl.int32)
    a2 = tl.zeros([BLOCK], dtype=tl.int32)
    for high in range(C):
        value = tl.load(values + high * stride, mask=inside, other=0.0)
        q = tl.load(midranks + high)
        n_equal = tl.zeros([BLOCK], dtype=tl.int32)
        for low in range(C):
            its = tl.load(values + low * stride, mask=inside, other=0.0)
            n_equal += (value == its).to(tl.int32)
            step = q - tl.load(midranks + low)
            sign = (value > its).to(tl.float32) - (value < its).to(tl.float32)
            # Every pair comes twice and counts once: where this condition is the higher.
            s += tl.where(step > 0, sign, 0.0)
            d += tl.where(step > 0, step, 0.0) * sign
        a1 += n_equal - 1
        a2 += (n_equal - 1) * (n_equal - 1)
    return s, d, a1, a2


@triton.jit
def trend_kernel(
    means,
    midranks,
    table,
    s_out,
    rho_out,
    a1_out,
    a2_out,
    n_same_out,
    rho_sum_out,
    n_latents,
    n_columns,
    n_a2,
    untied_spread,
    level_spread,
    untied_critical,
    z,
    variance,
    variance_a1,
    variance_a2,
    C: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program a latent of means [C, T, 1 + B].

    The smallest |S| that passes stands in `table` [n_a1, n_a2], or is untied_critical without ties and
    1 + z sqrt(variance) with them.
    """
    latent = tl.program_id(0).to(tl.int64)
    n_same = tl.zeros([BLOCK], dtype=tl.int32)
    rho_sum = tl.zeros([BLOCK], dtype=tl.float32)
    first_s = 0.0
    for start in range(0, n_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < n_columns
        values = means + latent * n_columns + columns
        s, d, a1, a2 = _compare(values, tl.cast(n_latents, tl.int64) * n_columns, midranks, inside, C, BLOCK)
        spread = untied_spread - (a2 + 2 * a1).to(tl.float32) / 12
        rho = tl.where(spread > 0, 0.5 * d / tl.sqrt(tl.maximum(spread, 1e-9) * level_spread), 0.0)
        if HAS_TABLE:
            smallest = tl.load(table + a1 * n_a2 + a2, mask=inside, other=0.0)
        else:
            tied = variance + variance_a1 * a1.to(tl.float32) + variance_a2 * a2.to(tl.float32)
            smallest = tl.where(a1 > 0, 1 + z * tl.sqrt(tl.maximum(tied, 0.0)), untied_critical)
        is_first = columns == 0
        if start == 0:
            first_s = tl.sum(tl.where(is_first, s, 0.0))
            tl.store(s_out + latent, first_s.to(tl.int32))
            tl.store(rho_out + latent, tl.sum(tl.where(is_first, rho, 0.0)))
            tl.store(a1_out + latent, tl.sum(tl.where(is_first, a1, 0)))
            tl.store(a2_out + latent, tl.sum(tl.where(is_first, a2, 0)))
        is_resample = inside & (columns > 0)
        n_same += (is_resample & (tl.abs(s) >= smallest) & (s * first_s > 0)).to(tl.int32)
        rho_sum += tl.where(is_resample, tl.abs(rho), 0.0)
    tl.store(n_same_out + latent, tl.sum(n_same))
    tl.store(rho_sum_out + latent, tl.sum(rho_sum))


def reduce_trends(means: torch.Tensor, null: TrendNull, alpha: float) -> Trends:
    """The result of `morfi.kernels.trend.reduce_trends` for all conditions' means, float32 [C, T, 1 + B]."""
    return with_rho_of_levels(_of_conditions, means, null, alpha)


def _of_conditions(means: torch.Tensor, null: TrendNull, alpha: float) -> Trends:
    n, n_latents, n_columns = means.shape
    device = means.device

    def integers() -> torch.Tensor:
        return torch.empty(n_latents, dtype=torch.int32, device=device)

    s, a1, a2, n_same = integers(), integers(), integers(), integers()
    rho, rho_sum = (torch.empty(n_latents, device=device) for _ in range(2))
    table, untied = _critical(null, alpha, device)
    none = torch.zeros(())
    trend_kernel[(n_latents,)](
        means.contiguous(),
        null.midranks.float().to(device),
        rho if table is None else table,
        s,
        rho,
        a1,
        a2,
        n_same,
        rho_sum,
        n_latents,
        n_columns,
        0 if table is None else table.shape[1],
        float(null.spread(none, none)),
        null.level_spread,
        untied,
        normal_quantile(alpha),
        *null.variance_terms,
        C=n,
        HAS_TABLE=table is not None,
        BLOCK=min(BLOCK, triton.next_power_of_2(n_columns)),
    )
    n_resamples = max(1, n_columns - 1)
    return Trends(s, rho, a1, a2, n_same / n_resamples, rho_sum / n_resamples)


@functools.lru_cache(maxsize=8)
def _critical(null: TrendNull, alpha: float, device: torch.device) -> tuple[torch.Tensor | None, float]:
    """The smallest |S| that passes: float32 by a1 and a2, where the null was enumerated, and without ties."""
    none = torch.zeros(())
    untied = float(null.critical(alpha, none, none))
    if null.patterns is None:
        return None, untied
    n = len(null.ranks)
    a1 = torch.arange(n * (n - 1) + 1.0)
    a2 = torch.arange(n * (n - 1) ** 2 + 1.0)
    shape = len(a1), len(a2)
    table = null.critical(alpha, a1[:, None].expand(shape), a2.expand(shape))
    return table.to(device), untied


@triton.jit
def page_kernel(values, midranks, numerator_out, spread_out, n_blocks, C: tl.constexpr, BLOCK: tl.constexpr):
    """One program BLOCK questions of values [C, U]: Page's numerator and 12 times the spread of the ranks."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_blocks
    stride = tl.cast(n_blocks, tl.int64)
    _, d, a1, a2 = _compare(values + columns, stride, midranks, inside, C, BLOCK)
    tl.store(numerator_out + columns, 0.5 * d, mask=inside)
    tl.store(spread_out + columns, (C * C * C - C - a2 - 2 * a1).to(tl.float32), mask=inside)


def page_blocks(values: torch.Tensor, midranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of `morfi.kernels.page.page_blocks` for the questions of values [C, U]."""
    n, n_blocks = values.shape
    numerator, spread = (torch.empty(n_blocks, device=values.device) for _ in range(2))
    if n_blocks:
        page_kernel[(triton.cdiv(n_blocks, BLOCK),)](
            values.contiguous(),
            midranks.float().to(values.device),
            numerator,
            spread,
            n_blocks,
            C=n,
            BLOCK=BLOCK,
        )
    return numerator, spread
