"""Spearman's rho where levels have replicates: that of the levels' means over their trainings.

So it says how close the levels are to a perfect order. Over trainings it would be bounded by how far those of
one level scatter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from morfi.kernels.null import TrendNull, trend_null
from morfi.kernels.trend_reference import Trends


def with_rho_of_levels(
    of_conditions: Callable[[torch.Tensor, TrendNull, float], Trends],
    means: torch.Tensor,
    null: TrendNull,
    alpha: float,
) -> Trends:
    """The trends that `of_conditions` gives, with rho of the levels' means where there are replicates."""
    found = of_conditions(means, null, alpha)
    if not null.has_replicates:
        return found
    ordered = trend_null(tuple(range(null.n_levels)))
    of_levels = of_conditions(level_means(means, null), ordered, 1.0)
    return replace(found, rho=of_levels.rho, mean_abs_rho=of_levels.mean_abs_rho)


def level_means(means: torch.Tensor, null: TrendNull) -> torch.Tensor:
    """The means of each level's conditions, in the order of levels: [n_levels, T, R] of `means` [C, T, R].

    Float32 like these, but added up in float64, where levels that tie do so in any order of conditions.
    """
    own = [
        [condition for condition, rank in enumerate(null.ranks) if rank == level]
        for level in range(null.n_levels)
    ]
    return torch.stack([(means[one].double().sum(0) / len(one)).float() for one in own])
