"""Intervals and tests for accuracies: Wilson, McNemar (exact), and two of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_MOST_COUNTS_AT_ONCE = 4_000_000  # 32 MB of int64


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson_interval(n_correct: int, n: int, confidence: float = 0.95) -> Interval:
    """The score interval of a proportion (Wilson 1927), without continuity correction; (0, 1) for n = 0."""
    _check_confidence(confidence)
    if not 0 <= n_correct <= n:
        raise ValueError(f"n_correct = {n_correct} is out of range for n = {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = n_correct / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the two ends the interval reaches 0 or 1 exactly; rounding would leave it just beside.
    low = 0.0 if n_correct == 0 else max(0.0, centre - half)
    high = 1.0 if n_correct == n else min(1.0, centre + half)
    return Interval(low, high)


def mcnemar_exact_p(n_gained: int, n_lost: int) -> float:
    """The two-sided p-value that gains and losses are equally likely, from the binomial (McNemar 1947).

    The tail is summed from its largest term down, each term from the last, so that it costs no more than the
    terms that count and holds for millions of pairs.
    """
    if n_gained < 0 or n_lost < 0:
        raise ValueError(f"counts must not be negative: n_gained = {n_gained}, n_lost = {n_lost}")
    n, k = n_gained + n_lost, min(n_gained, n_lost)
    log_largest = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    term = total = 1.0
    while k > 0 and term > total * 1e-17:
        term *= k / (n - k + 1)
        total += term
        k -= 1
    return min(1.0, 2 * math.exp(log_largest) * total)


def paired_bootstrap_interval(
    differences: Sequence[int | float], *, n_resamples: int = 10_000, seed: int = 0, confidence: float = 0.95
) -> Interval:
    """The percentile interval of the mean of `differences` (one for each question) over resampled questions.

    A resample is drawn as multinomial counts over the distinct differences, which is the same distribution
    as drawing questions one by one: for right/wrong answers three counts in place of n draws.
    Raises ValueError for no differences, or a difference that is not finite.
    """
    import numpy as np

    _check_confidence(confidence)
    if n_resamples < 1:
        raise ValueError(f"n_resamples = {n_resamples}; expected at least 1")
    values, counts = np.unique(np.asarray(differences, dtype=np.float64), return_counts=True)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("differences must hold at least one number, and finite numbers only")
    n = int(counts.sum())
    generator = np.random.default_rng(seed)
    means = np.empty(n_resamples)
    step = max(1, _MOST_COUNTS_AT_ONCE // values.size)
    for start in range(0, n_resamples, step):
        rows = min(step, n_resamples - start)
        means[start : start + rows] = generator.multinomial(n, counts / n, size=rows) @ values / n
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def paired_adjusted_interval(n_gained: int, n_lost: int, n: int, confidence: float = 0.95) -> Interval:
    """The interval of (n_gained - n_lost) / n of Bonett and Price (2012): Wald's, a gain and a loss added.

    It has a width where nothing was gained and nothing lost: that `n` questions showed no change does not
    mean that none would. Raises ValueError for counts that do not go together.
    """
    _check_confidence(confidence)
    if n < 1 or min(n_gained, n_lost) < 0 or n_gained + n_lost > n:
        raise ValueError(f"n_gained = {n_gained} and n_lost = {n_lost} are out of range for n = {n}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    gained, lost = (n_gained + 1) / (n + 2), (n_lost + 1) / (n + 2)
    half = z * math.sqrt((gained + lost - (gained - lost) ** 2) / (n + 2))
    return Interval(max(-1.0, gained - lost - half), min(1.0, gained - lost + half))


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of at least two independent values; raises ValueError for fewer."""
    from scipy.stats import t

    _check_confidence(confidence)
    n = len(values)
    if n < 2:
        raise ValueError(f"{n} values; expected at least 2")
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean - half, mean + half)


def spread_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of `mean_interval`; None for fewer than two values, and for all alike.

    Values that are all alike say nothing of how far others would lie from them.
    """
    return mean_interval(values) if len(set(values)) > 1 else None


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}; expected a number between 0 and 1")
