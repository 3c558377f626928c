"""The statistics of latents' trends, and the reference that has them one series at a time, by ranks."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from morfi.kernels.null import TrendNull


@dataclass(frozen=True, eq=False, slots=True)
class Trends:
    """Statistics of T latents; the first column of the means is the full sample, the others are reduced."""

    s: torch.Tensor  # int32 [T]: of the full sample
    rho: torch.Tensor  # float32 [T]: Spearman's of the full sample, by levels' means; 0 where all are equal
    a1: torch.Tensor  # int32 [T]: how means tie in the full sample, see `TrendNull`
    a2: torch.Tensor  # int32 [T]
    stability: torch.Tensor  # float32 [T]: share of resamples where S has the same sign and p <= alpha
    mean_abs_rho: torch.Tensor  # float32 [T]: over the resamples


def trend_reference(means: torch.Tensor, null: TrendNull, alpha: float) -> Trends:
    """The result of `reduce_trends` for `means` [C, T, 1 + n_resamples], one series at a time, by ranks."""
    _, n_latents, n_columns = means.shape
    s, rho, a1, a2, p = (torch.zeros(n_latents, n_columns, dtype=torch.float64) for _ in range(5))
    for latent in range(n_latents):
        for column in range(n_columns):
            series = means[:, latent, column].tolist()
            for place, value in enumerate(series):
                n_equal = series.count(value)
                a1[latent, column] += n_equal - 1
                a2[latent, column] += (n_equal - 1) ** 2
                for other, its in enumerate(series):
                    if null.ranks[other] < null.ranks[place]:
                        s[latent, column] += (value > its) - (value < its)
            rho[latent, column] = _spearman(_level_means(series, null))
            ties = int(a1[latent, column]), int(a2[latent, column])
            p[latent, column] = null.p_value(int(s[latent, column]), *ties)
    same = (p <= alpha) & (s * s[:, :1] > 0)
    n_resamples = max(1, n_columns - 1)
    return Trends(
        s[:, 0].to(torch.int32),
        rho[:, 0].float(),
        a1[:, 0].to(torch.int32),
        a2[:, 0].to(torch.int32),
        same[:, 1:].sum(1) / n_resamples,
        (rho[:, 1:].abs().sum(1) / n_resamples).float(),
    )


def _level_means(series: list[float], null: TrendNull) -> list[float]:
    """The mean of each level's conditions, in the order of levels."""
    own = [
        [value for value, rank in zip(series, null.ranks, strict=True) if rank == level]
        for level in range(null.n_levels)
    ]
    return [statistics.fmean(one) for one in own]


def _spearman(series: list[float]) -> float:
    """Spearman's correlation of `series` with its order; 0 where all are equal."""
    n = len(series)
    q = [place - (n - 1) / 2 for place in range(n)]
    r = [sum(v < value for v in series) + (series.count(value) - n) / 2 for value in series]
    norm = (sum(x * x for x in r) * sum(x * x for x in q)) ** 0.5
    return sum(x * y for x, y in zip(r, q, strict=True)) / norm if norm else 0.0
