"""How many trends chance would give: label permutations of all latents at once, and Benjamini-Hochberg."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from morfi.kernels.null import TrendNull

_N_PERMUTATIONS = 5040  # of the levels; drawn where there are more
_PART = 128  # latents at a time
_DIGITS = 39  # signs that an int64 holds


@dataclass(frozen=True, slots=True)
class FalseDiscoveries:
    """The number of latents with |S| of at least `s`, and the share of them expected by chance."""

    s: int
    n_found: int
    fdr: float


class Permutations:
    """How often S is how large when the levels are shuffled, the same way for all latents: the FDR's null."""

    def __init__(self, null: TrendNull, seed: int) -> None:
        n = len(null.ranks)
        if math.factorial(n) <= _N_PERMUTATIONS:
            orders = torch.tensor(list(itertools.permutations(range(n))))
        else:
            generator = torch.Generator().manual_seed(seed)
            drawn = [torch.randperm(n, generator=generator) for _ in range(_N_PERMUTATIONS - 1)]
            orders = torch.stack([torch.arange(n), *drawn])
        ranks, order = torch.tensor(null.ranks).sort(stable=True)
        # By level, so that the draw does not depend on the order in which conditions were given.
        ranks = ranks[orders][:, order.argsort()]  # [P, C]
        first, second = torch.triu_indices(n, n, 1)
        weights = (ranks[:, second] - ranks[:, first]).sign().to(torch.int8)  # [P, pairs]
        self._weights, self._kinds, self._n_orders = _kinds(weights)
        self._n_pairs = null.n_pairs
        self._signs: list[torch.Tensor] = []

    def add(self, signs: torch.Tensor) -> None:
        """Counts the latents of `signs` [T, pairs]."""
        self._signs.append(signs.to(torch.int8))

    def false_discoveries(self) -> tuple[FalseDiscoveries, ...]:
        """For every |S| that is found, from the largest: the median over shuffles against what was found."""
        if not any(len(signs) for signs in self._signs):
            return ()
        at_least = self._histogram().flip(1).cumsum(1).flip(1)
        true = at_least[self._kinds[0]].tolist()  # the first order is the true one
        shuffled = at_least.repeat_interleave(self._n_orders, 0).double().median(0).values.tolist()
        return tuple(
            FalseDiscoveries(s, true[s], min(1.0, shuffled[s] / true[s]))
            for s in range(self._n_pairs, 0, -1)
            if true[s] > (true[s + 1] if s < self._n_pairs else 0)
        )

    def _histogram(self) -> torch.Tensor:
        """How many latents have which |S|, int64 [kinds of order, n_pairs + 1]."""
        signs, _, n_latents = _kinds(torch.cat(self._signs))
        size = self._n_pairs + 1
        device = signs.device
        found = torch.zeros(len(self._weights) * size, dtype=torch.float64, device=device)
        rows = torch.arange(len(self._weights), device=device)[:, None] * size
        weights = self._weights.to(device).float()
        # On a CPU, what stays in its cache.
        width = _PART if device.type == "cpu" else 32 * _PART
        for start in range(0, len(signs), width):
            part = slice(start, start + width)
            s = (weights @ signs[part].float().T).abs_().long()  # [kinds, T]: exact, the sums are small
            found += torch.bincount((s + rows).view(-1), n_latents[part].double().repeat(len(s)), len(found))
        return found.long().view(-1, size).cpu()


def _kinds(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The different rows of signs [m, w], which one each is, and how many; a row and its negative are one.

    |S| is the same for a set of signs and their negatives, and for an order and its reverse.
    """
    leading = rows.gather(1, (rows != 0).int().argmax(1, keepdim=True))
    signed = rows * leading
    kind_of = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    # Signs are digits of a number in base 3: sorting numbers is much faster than sorting rows.
    for start in range(0, rows.shape[1], _DIGITS):
        digits = signed[:, start : start + _DIGITS] + 1
        weights = 3 ** torch.arange(digits.shape[1], device=rows.device)
        _, numbers = torch.unique((digits * weights).sum(1), return_inverse=True)
        _, kind_of = torch.unique(kind_of * (numbers.max() + 1) + numbers, return_inverse=True)
    n_rows = kind_of.bincount()
    place = torch.arange(len(rows), device=rows.device)
    first = torch.full_like(n_rows, len(rows)).scatter_reduce_(0, kind_of, place, "amin")
    return signed[first], kind_of, n_rows


def benjamini_hochberg(p: torch.Tensor, q: float) -> torch.Tensor:
    """Which hypotheses are rejected at a false discovery rate of q (Benjamini and Hochberg 1995), bool [m].

    `p` float64 [m]; the rate holds for independent or positively dependent tests.
    """
    if not len(p):
        return torch.zeros(0, dtype=torch.bool, device=p.device)
    ordered = p.sort().values
    below = ordered <= q * torch.arange(1, len(p) + 1, device=p.device) / len(p)
    return p <= torch.where(below, ordered, -1.0).amax()
