"""Page's L: whether latents follow the levels question by question (Page, JASA 58:216, 1963).

A question is a block: its activations under the C conditions are ranked, r, equal ones by mid-rank, and
L = sum over questions and conditions of q_c r_c, where q are the mid-ranks of the levels. Less its mean
N C (C + 1)^2 / 4, L is the sum over questions of D = sum of (q_c - mean q)(r_c - mean r), which is half the
sum over pairs of conditions of (q_high - q_low) sign(difference), see `morfi.kernels.trend`. If the levels do
not matter, all orders within a question are as likely, and D has the variance
sum (q - mean q)^2 sum (r - mean r)^2 / (C - 1), the ties being in the second sum. Questions under which all
conditions tie, such as those where the latent never fires, add nothing to either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from morfi.kernels.encoder import Nonzeros
from morfi.kernels.null import TrendNull


@dataclass(frozen=True, eq=False, slots=True)
class PageTrend:
    """Page's test of T latents, float64 [T]."""

    L: torch.Tensor
    z: torch.Tensor  # normal approximation, corrected for ties; positive where L is above its mean
    p: torch.Tensor  # two-sided; 1 where nothing but ties came


class PageSums:
    """Gathers the questions of a range of latents, in any order and chunks."""

    def __init__(self, null: TrendNull, latents: slice, device: str | torch.device = "cpu") -> None:
        self.latents = latents
        self._null = null
        # Sums of halves and of integers, so exact in float64 in any order.
        self.numerator = torch.zeros(latents.stop - latents.start, dtype=torch.float64, device=device)
        self.spread = torch.zeros_like(self.numerator)  # 12 times the sum of (r - mean r)^2
        self.n_seen = torch.zeros_like(self.numerator, dtype=torch.int64)

    def add(self, latents: slice, found: Sequence[Nonzeros], n_questions: int) -> None:
        """Adds questions of some latents: their non-zeros under each condition, of the same questions."""
        cells = slice(latents.start - self.latents.start, latents.stop - self.latents.start)
        latent, values = _blocks(found, n_questions)
        numerator, spread = page_blocks(values, self._null.midranks)
        for total, one in ((self.numerator, numerator), (self.spread, spread)):
            total[cells].index_add_(0, latent, one.double())
        self.n_seen[cells] += n_questions

    def reduce(self, n_questions: int) -> PageTrend:
        """The test; ValueError unless every question came once."""
        if not bool((self.n_seen == n_questions).all()):
            latent = int((self.n_seen != n_questions).nonzero()[0])
            raise ValueError(
                f"latent {latent + self.latents.start} has seen {int(self.n_seen[latent])} of "
                f"{n_questions} questions"
            )
        n = len(self._null.ranks)
        variance = self.spread / 12 * self._null.level_spread / (n - 1)
        z = torch.where(variance > 0, self.numerator / variance.clamp_min(1e-30).sqrt(), 0.0)
        mean = n_questions * n * (n + 1) ** 2 / 4
        return PageTrend(self.numerator + mean, z, torch.special.erfc(z.abs() / 2**0.5))


def page_blocks(values: torch.Tensor, midranks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """D, and 12 times the sum of (r - mean r)^2, of the blocks values [C, U]: float32 [U], both exact."""
    if values.is_cuda:
        from morfi.kernels import trend_triton

        return trend_triton.page_blocks(values, midranks)
    numerator, spread = (torch.zeros(values.shape[1]) for _ in range(2))
    q, n = midranks.tolist(), len(values)
    for high in range(n):
        others = torch.zeros_like(spread)
        for low in range(n):
            others += values[high] == values[low]
            if q[low] < q[high]:
                numerator += torch.sub(values[high], values[low]).sign_() * ((q[high] - q[low]) / 2)
        others -= 1
        spread -= others * others + 2 * others
    return numerator, spread + (n**3 - n)


def _blocks(found: Sequence[Nonzeros], n_questions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The questions of a latent where it fires under some condition: latents [U], activations [C, U]."""
    keys = []
    for one in found:
        latent = torch.arange(len(one.starts) - 1, device=one.starts.device)
        keys.append(latent.repeat_interleave(one.starts.diff()) * n_questions + one.questions)
    blocks, places = torch.unique(torch.cat(keys), return_inverse=True)
    values = torch.zeros(len(found), len(blocks), device=blocks.device)
    start = 0
    for condition, one in enumerate(found):
        values[condition, places[start : start + len(one.values)]] = one.values.float()
        start += len(one.values)
    return blocks // n_questions, values


def page_reference(activations: torch.Tensor, null: TrendNull) -> PageTrend:
    """Page's test for activations [C, N, T], one question of one latent at a time, by ranks."""
    n, n_questions, n_latents = activations.shape
    q = null.midranks.tolist()
    found = torch.zeros(3, n_latents, dtype=torch.float64)
    for latent in range(n_latents):
        total = variance = 0.0
        for question in range(n_questions):
            block = activations[:, question, latent].tolist()
            r = [sum(v < value for v in block) + (block.count(value) + 1) / 2 for value in block]
            total += sum(x * y for x, y in zip(q, r, strict=True))
            spread = sum((x - (n + 1) / 2) ** 2 for x in r)
            variance += null.level_spread * spread / (n - 1)
        z = (total - n_questions * n * (n + 1) ** 2 / 4) / variance**0.5 if variance else 0.0
        found[:, latent] = torch.tensor([total, z, torch.special.erfc(torch.tensor(abs(z) / 2**0.5))])
    return PageTrend(*found)
