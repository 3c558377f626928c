"""The rules that select latents: by false discovery rate, by p-value in every resample, or by Page's test."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch

from morfi.errors import InputError
from morfi.kernels.null import TrendNull
from morfi.kernels.sums import PartialSums
from morfi.kernels.trend import reduce_trends
from morfi.latents.false_discoveries import FalseDiscoveries, benjamini_hochberg
from morfi.latents.trend_inputs import TrendInputs

Method = Literal["fdr", "bootstrap", "page"]
METHODS: tuple[Method, ...] = get_args(Method)
_ROUNDING = 1e-5  # of a mean of float32 correlations: one that is `rho_min` counts as such


@dataclass(frozen=True, slots=True)
class Criteria:
    """When a latent is selected, see `find_trends`.

    `fdr` is for the method "fdr" alone, `alpha` for "bootstrap", `page_fdr` for "page"; `stability` for the
    first two. Raises InputError for one that is no number from 0 to 1.
    """

    fdr: float = 0.05
    alpha: float = 0.001
    stability: float = 0.95
    rho_min: float = 0.9
    min_firing: float = 0.01
    page_fdr: float = 0.05

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 <= float(value) <= 1:
                raise InputError(f"{field.name} is {value!r}; expected a number from 0 to 1")

    def alpha_of(self, method: Method, null: TrendNull) -> float:
        """The largest p of an S that counts in a resample; 1 where its sign alone does."""
        if method not in METHODS:
            raise InputError(f'method "{method}" is none of {", ".join(METHODS)}')
        return 1.0 if method == "fdr" else max(self.alpha, float(null.tail[-1]))

    def is_descriptive(self, method: Method, null: TrendNull) -> bool:
        """Whether there are so few orders of the conditions that not even a perfect trend can pass."""
        if method == "page" and not null.has_replicates:
            return False  # which asks for no p-value of S
        most = {"fdr": self.fdr, "bootstrap": self.alpha, "page": self.page_fdr}[method]
        return most < float(null.tail[-1])


def smallest_s(fdr: Sequence[FalseDiscoveries], null: TrendNull, most: float, n_firing: int) -> int | None:
    """The least |S| whose false discovery rate is at most `most`; None where there is none.

    Its p-value may be no more either: shuffled levels give all latents new orders at once, so that latents
    which move together pass together, with the probability that one of them does. With replicates, whose
    p-values can be small enough, nor may the rate that these give (Benjamini-Hochberg of `n_firing`): the
    median over shuffles is 0 where most have no such latent, which one of many by chance is too.
    """

    def is_enough(one: FalseDiscoveries) -> bool:
        p = float(null.tail[one.s])
        by_p = n_firing * p <= most * one.n_found or not null.has_replicates
        return one.fdr <= most and p <= most and by_p

    return min((one.s for one in fdr if is_enough(one)), default=None)


def selected_by_resampling(
    run: TrendInputs,
    candidates: torch.Tensor,
    limits: list[torch.Tensor] | None,
    counts: torch.Tensor,
    criteria: Criteria,
    *,
    alpha: float,
) -> dict[str, torch.Tensor]:
    """The columns that resampling the candidates gives, NaN for all others; S with a p over alpha is none."""
    stability, mean_abs_rho = (torch.full((run.encoder.d_sae,), torch.nan) for _ in range(2))
    for start in range(0, len(candidates), run.n_resampled):
        part = candidates[start : start + run.n_resampled]
        sums = PartialSums(len(run.activations), slice(0, len(part)), counts.shape[1], run.device)
        run.add_to(sums, run.encoder.select(part), limits, counts)
        trends = reduce_trends(sums.means(run.n_questions), run.null, alpha)
        stability[part.cpu()] = trends.stability.cpu()
        mean_abs_rho[part.cpu()] = trends.mean_abs_rho.cpu()
    selected = (stability >= criteria.stability) & (mean_abs_rho >= criteria.rho_min - _ROUNDING)
    return {"stability": stability, "mean_abs_rho": mean_abs_rho, "selected": selected}


def selected_by_page(
    columns: dict[str, torch.Tensor], fires: torch.Tensor, criteria: Criteria, null: TrendNull
) -> dict[str, torch.Tensor]:
    """The columns that Page's test decides, with replicates beside S; none is resampled."""
    direction = columns["page_z"].sign()
    selected = fires & (columns["rho"] * direction >= criteria.rho_min - _ROUNDING)
    for p in ("page_p", "p_exact") if null.has_replicates else ("page_p",):
        selected[fires] &= benjamini_hochberg(columns[p][fires], criteria.page_fdr)
    none = torch.full((len(fires),), torch.nan)
    return {
        "direction": direction.to(torch.int8),
        "stability": none,
        "mean_abs_rho": none,
        "selected": selected,
    }
