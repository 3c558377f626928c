"""How the means of ordered conditions follow their levels: S and Spearman's rho, from signs of differences.

S (Mann-Kendall's, or Jonckheere-Terpstra's where several conditions share a level) is the sum over pairs of
conditions with different levels, low and high, of sign(m_high - m_low). With r the ranks of the means and q
those of the levels, r_c - mean r is half the sum of condition c's signs against all others, so that
Spearman's numerator, the sum of (r_c - mean r)(q_c - mean q), is half the sum of (q_high - q_low)
sign(m_high - m_low). No sort, and the conditions may come in any order. With replicates rho is that of the
levels' means (`morfi.kernels.level_means`).
"""

from __future__ import annotations

import torch

from morfi.kernels.level_means import with_rho_of_levels
from morfi.kernels.null import TrendNull
from morfi.kernels.trend_reference import Trends


class PairwiseTrend:
    """Gathers the conditions of one tile of latents, in any order, and reduces them.

    Means are float32 [T, 1 + n_resamples]; `null` says which conditions there are. All statistics, rho too,
    are those of the conditions.
    """

    def __init__(self, null: TrendNull) -> None:
        self._null = null
        self._means: dict[int, torch.Tensor] = {}
        self._s = self._d = torch.zeros(())

    def add(self, condition: int, means: torch.Tensor) -> None:
        """The means of condition number `condition`, each once."""
        if condition in self._means or not 0 <= condition < len(self._null.ranks):
            raise ValueError(f"condition {condition} came twice or does not exist")
        if not self._means:
            self._s, self._d = torch.zeros_like(means), torch.zeros_like(means)
        for other, its in self._means.items():
            step = float(self._null.midranks[condition] - self._null.midranks[other])
            if step:
                sign = torch.sub(means, its).sign_()
                self._s.add_(sign, alpha=1.0 if step > 0 else -1.0)
                self._d.add_(sign, alpha=step)
        self._means[condition] = means

    def reduce(self, alpha: float) -> Trends:
        """The statistics; all conditions must have come."""
        null, n = self._null, len(self._null.ranks)
        if len(self._means) != n:
            raise ValueError(f"{len(self._means)} of {n} conditions came")
        means = [self._means[c] for c in range(n)]
        magnitude = self._s.abs()
        none = torch.zeros((), device=magnitude.device)
        untied = float(null.spread(none, none)) * null.level_spread
        rho = self._d * (0.5 / untied**0.5)
        passes = magnitude >= null.critical(alpha, none, none)
        a1, a2 = (torch.zeros(len(rho), dtype=torch.int32, device=rho.device) for _ in range(2))
        tied = _tied(means)
        if len(tied):
            ties = _ties(torch.stack([one[tied] for one in means]))
            spread = null.spread(*ties) * null.level_spread
            rho[tied] = torch.where(spread > 0, self._d[tied] * 0.5 / spread.clamp_min(1e-9).sqrt(), 0.0)
            passes[tied] = magnitude[tied] >= null.critical(alpha, *ties)
            a1[tied], a2[tied] = (one[:, 0].to(torch.int32) for one in ties)
        same = passes[:, 1:] & (self._s[:, 1:] * self._s[:, :1] > 0)
        n_resamples = max(1, same.shape[1])
        return Trends(
            self._s[:, 0].to(torch.int32),
            rho[:, 0].clone(),
            a1,
            a2,
            same.sum(1) / n_resamples,
            rho[:, 1:].abs().sum(1) / n_resamples,
        )


def reduce_trends(means: torch.Tensor, null: TrendNull, alpha: float) -> Trends:
    """The trends of all conditions' means at once, float32 [C, T, 1 + n_resamples]."""
    if means.is_cuda:
        from morfi.kernels import trend_triton

        return trend_triton.reduce_trends(means, null, alpha)
    return with_rho_of_levels(_of_conditions, means, null, alpha)


def _of_conditions(means: torch.Tensor, null: TrendNull, alpha: float) -> Trends:
    state = PairwiseTrend(null)
    for condition, one in enumerate(means):
        state.add(condition, one)
    return state.reduce(alpha)


def pair_signs(means: torch.Tensor) -> torch.Tensor:
    """The signs of the differences of means [C, T], float32 [T, C(C-1)/2], in order of pairs c < c'."""
    first, second = torch.triu_indices(len(means), len(means), 1)
    return (means[second] - means[first]).sign_().T


def _tied(means: list[torch.Tensor]) -> torch.Tensor:
    """The latents of which two conditions have the same mean in some resample."""
    found = torch.zeros(len(means[0]), dtype=torch.bool, device=means[0].device)
    for place, one in enumerate(means):
        for other in means[:place]:
            found |= (one == other).any(1)
    return found.nonzero()[:, 0]


def _ties(means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums a1 and a2 of `means` [C, T, R], float32 [T, R] each."""
    a1, a2 = (
        torch.zeros(means.shape[1:], device=means.device),
        torch.zeros(means.shape[1:], device=means.device),
    )
    for one in means:
        others = (means == one).sum(0).float() - 1
        a1 += others
        a2 += others * others
    return a1, a2
