"""Null distributions of S: Mann-Kendall's for one condition a level, Jonckheere-Terpstra's for several.

S is the sum, over pairs of conditions with different levels, of the sign of their difference. Without equal
values its null is exact at any size (Gauss' multinomial coefficients in q count orders by inversions;
Knuth, The Art of Computer Programming 3, 5.1.2). With equal values it is enumerated for up to
`MAX_ENUMERATED` conditions: exactly for one condition a level, and for several, where it depends on which
of the values are equal, by the largest p-value of all that have as many equal ones. Beyond that it is
approximated by a normal distribution with Kendall's tie-corrected variance (Rank Correlation Methods,
ch. 3 to 5).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass

import torch

MAX_ENUMERATED = 8


@dataclass(frozen=True, eq=False, slots=True)
class TrendNull:
    """The null for conditions of some level ranks.

    How values tie is told by two sums over conditions: `a1` of how many others have its value, and `a2` of
    the squares of that.
    """

    ranks: tuple[int, ...]
    midranks: torch.Tensor  # float64 [C]: ranks of the levels, 1 to C, equal ones averaged
    n_pairs: int  # that are compared
    tail: torch.Tensor  # float64 [n_pairs + 1]: P(|S| >= s) without equal values
    patterns: dict[tuple[int, int], torch.Tensor] | None  # the same by (a1, a2), at least, where enumerated

    def p_value(self, s: int, a1: int = 0, a2: int = 0) -> float:
        """Two-sided p-value of S."""
        if not a1:
            return float(self.tail[abs(s)])
        if self.patterns is not None:
            return float(self.patterns[a1, a2][abs(s)])
        deviation = math.sqrt(float(self.variance(torch.tensor(float(a1)), torch.tensor(float(a2)))))
        return math.erfc(max(0.0, abs(s) - 1) / deviation / math.sqrt(2)) if deviation and s else 1.0

    def critical(self, alpha: float, a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
        """The smallest |S| whose p-value is at most `alpha`, float32 like `a1` and `a2`."""
        found = torch.full(a1.shape, _smallest(self.tail, alpha), device=a1.device)
        if self.patterns is None:
            tied = 1 + normal_quantile(alpha) * self.variance(a1, a2).sqrt()
            return torch.where(a1 > 0, tied, found)
        for (one, two), tail in self.patterns.items():
            found[(a1 == one) & (a2 == two)] = _smallest(tail, alpha)
        return found

    def variance(self, a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
        """Kendall's variance of S with ties among the values and among the levels."""
        constant, by_a1, by_a2 = self.variance_terms
        return (constant + by_a1 * a1 + by_a2 * a2).clamp_min(0)

    @property
    def variance_terms(self) -> tuple[float, float, float]:
        """The variance without ties among the values, and what a unit of a1 and of a2 adds to it."""
        n = len(self.ranks)
        u1 = sum(size * (size - 1) for size in Counter(self.ranks).values())
        u2 = sum(size * (size - 1) * (size - 2) for size in Counter(self.ranks).values())
        u3 = sum(size * (size - 1) * (2 * size + 5) for size in Counter(self.ranks).values())
        triples = u2 / (9 * n * (n - 1) * (n - 2)) if n > 2 else 0.0
        pairs = u1 / (2 * n * (n - 1))
        return (n * (n - 1) * (2 * n + 5) - u3) / 18, pairs - triples - 7 / 18, triples - 1 / 9

    def spread(self, a1: torch.Tensor, a2: torch.Tensor) -> torch.Tensor:
        """Sum of (rank - mean rank)^2 of the values."""
        n = len(self.ranks)
        return (n**3 - n - (a2 + 2 * a1)) / 12

    @property
    def n_levels(self) -> int:
        """How many different levels there are."""
        return len(set(self.ranks))

    @property
    def has_replicates(self) -> bool:
        """Whether some level has several conditions."""
        return self.n_levels < len(self.ranks)

    @property
    def level_spread(self) -> float:
        """Sum of (rank - mean rank)^2 of the levels."""
        return float((self.midranks - self.midranks.mean()).square().sum())


@functools.cache
def trend_null(ranks: tuple[int, ...]) -> TrendNull:
    """The null for conditions whose levels have these ranks, from 0 on; several may share one."""
    sizes = Counter(ranks)
    n, n_pairs = len(ranks), (len(ranks) ** 2 - sum(size**2 for size in sizes.values())) // 2
    below = {rank: sum(size for other, size in sizes.items() if other < rank) for rank in sizes}
    midranks = torch.tensor([below[rank] + (sizes[rank] + 1) / 2 for rank in ranks], dtype=torch.float64)
    tail = _tail(_inversions(list(sizes.values())), n_pairs)
    patterns = _enumerate(ranks) if n <= MAX_ENUMERATED else None
    return TrendNull(ranks, midranks, n_pairs, tail, patterns)


def _inversions(sizes: list[int]) -> list[int]:
    """How many orders of groups of these sizes have 0, 1, 2 ... inversions: Gauss' multinomial in q."""
    counts, n = [1], 0
    for size in sizes:
        for i in range(1, size + 1):
            n += 1
            counts = _divided(_times(counts, n), i)
    return counts


def _times(counts: list[int], n: int) -> list[int]:
    """counts (1 - q^n)"""
    found = counts + [0] * n
    for place, count in enumerate(counts):
        found[place + n] -= count
    return found


def _divided(counts: list[int], n: int) -> list[int]:
    """counts / (1 - q^n), which leaves no remainder"""
    found = list(counts)
    for place in range(n, len(found)):
        found[place] += found[place - n]
    return found[: len(found) - n]


def _tail(counts: list[int], n_pairs: int) -> torch.Tensor:
    """P(|S| >= s) for s from 0 on, where `counts[i]` orders have i inversions: S = n_pairs - 2 i."""
    total = sum(counts)
    by_size = [0] * (n_pairs + 1)
    for inversions, count in enumerate(counts):
        by_size[abs(n_pairs - 2 * inversions)] += count
    at_least = list(itertools.accumulate(reversed(by_size)))[::-1]
    return torch.tensor([count / total for count in at_least], dtype=torch.float64)


@functools.cache
def _enumerate(ranks: tuple[int, ...]) -> dict[tuple[int, int], torch.Tensor]:
    """P(|S| >= s) for conditions of these level ranks, for each way in which values can be equal.

    With equal ranks the largest of all orders of the groups of equal values: no p-value is too small.
    """
    n = len(ranks)
    orders = torch.tensor(list(itertools.permutations(range(n))))
    pairs = [(a, b) for a, b in itertools.permutations(range(n), 2) if ranks[a] < ranks[b]]
    found: dict[tuple[int, int], torch.Tensor] = {}
    # Then the order of the groups makes no difference; reversed, it only gives S the other sign.
    is_in_any_order = len(set(ranks)) == n
    for groups in _partitions(n, n):
        key = (sum(t * (t - 1) for t in groups), sum(t * (t - 1) ** 2 for t in groups))
        assert key not in found
        for sizes in (
            {groups} if is_in_any_order else {min(one, one[::-1]) for one in itertools.permutations(groups)}
        ):
            value_of = torch.tensor([place for place, size in enumerate(sizes) for _ in range(size)])
            values = value_of[orders].to(torch.int8)
            s = sum((values[:, b] - values[:, a]).sign().to(torch.int32) for a, b in pairs)
            assert isinstance(s, torch.Tensor)
            counts = torch.bincount(s.abs(), minlength=len(pairs) + 1).double()
            tail = counts.flip(0).cumsum(0).flip(0) / len(orders)
            found[key] = tail.maximum(found.get(key, tail))
    return found


def _partitions(n: int, largest: int) -> list[tuple[int, ...]]:
    if not n:
        return [()]
    return [(t, *rest) for t in range(min(n, largest), 0, -1) for rest in _partitions(n - t, t)]


def _smallest(tail: torch.Tensor, alpha: float) -> float:
    return float((tail > alpha).sum())


def normal_quantile(alpha: float) -> float:
    """The value that a standard normal's size exceeds with the probability `alpha`."""
    return float(torch.special.ndtri(torch.tensor(1 - alpha / 2, dtype=torch.float64)))
