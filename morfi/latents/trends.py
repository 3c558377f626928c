"""The latents that rise or fall with the level of a condition, with honest error control."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import torch

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder, tiles
from morfi.kernels.null import TrendNull, trend_null
from morfi.kernels.page import PageSums
from morfi.kernels.resample import resample_counts
from morfi.kernels.sums import PartialSums
from morfi.kernels.trend import pair_signs, reduce_trends
from morfi.kernels.trend_reference import Trends
from morfi.latents.false_discoveries import FalseDiscoveries, Permutations, benjamini_hochberg
from morfi.latents.rows import Rows, check_rows
from morfi.latents.trend_inputs import TrendInputs


@dataclass(frozen=True, slots=True)
class Criteria:
    """When a latent is selected, see `find_trends`; `page_fdr` is for the method "page" alone."""

    alpha: float = 0.001
    stability: float = 0.95
    rho_min: float = 0.9
    min_firing: float = 0.01
    page_fdr: float = 0.05


@dataclass(frozen=True, eq=False, slots=True)
class TrendResult:
    """The result of `find_trends`.

    `latents` has a row for each latent: latent, direction (1 rises, -1 falls, 0 neither), rho, s, p_exact,
    slope (per unit of level), score (|slope| over the whole range of levels, in standard deviations over
    questions), stability and mean_abs_rho (null where the full sample rules the latent out already), firing
    (share of questions, of the condition with most), selected, means (over questions, float32 of each
    condition, in the order they were given); with the method "page" also page_z and page_p.
    `n_firing` of them fire on enough questions; `expected_false` of those would be perfect trends by chance.
    `is_descriptive`: there are so few conditions that even a perfect trend has p > alpha, and a perfect one
    was asked for instead.
    """

    latents: pa.Table
    levels: tuple[float, ...]
    n_questions: int
    n_firing: int
    expected_false: float
    fdr: tuple[FalseDiscoveries, ...]
    is_descriptive: bool

    @property
    def n_selected(self) -> int:
        """How many latents were selected."""
        return sum(self.latents["selected"].to_pylist())


def find_trends(
    activations: Sequence[Rows],
    levels: Sequence[float],
    encoder: Encoder,
    *,
    strata: Sequence[object] | None = None,
    criteria: Criteria | None = None,
    method: Literal["bootstrap", "page"] = "bootstrap",
    n_resamples: int = 1000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_tile: Callable[[int], None] | None = None,
) -> TrendResult:
    """The latents whose mean over questions rises or falls with the level (after arXiv 2604.26866).

    `activations` holds `Rows` [n_questions, d_model] for each condition, the same questions in the same
    order; `levels` their levels, where several conditions of one level are replicate trainings.

    "bootstrap" selects a latent if it fires on `min_firing` of the questions in some condition, S has an
    exact p of at most alpha and keeps its sign with such a p in the `stability` share of the resamples, and
    mean |rho| over them is at least `rho_min`. Resamples draw questions within `strata` (their relations), so
    they say how stable a trend is over questions, not over trainings: that is what replicates and `fdr` are
    for. "page" selects it if it fires as often, Page's L over questions is significant at a false discovery
    rate of `page_fdr` among those that fire (Benjamini-Hochberg), and rho of the means is at least `rho_min`
    in L's direction; nothing is resampled.

    `on_tile` is called with the number of latents that were encoded. The result does not depend on the order
    of the conditions. Raises InputError for conditions that cannot be compared.

    >>> find_trends(residuals, levels=[0, 50, 100], encoder=load_sae("my-sae").encoder).n_selected
    """
    criteria = criteria or Criteria()
    on_device = [one.to(device) if isinstance(one, torch.Tensor) else one for one in activations]
    n_questions = _check(on_device, levels, encoder, strata)
    distinct = sorted(set(levels))
    null = trend_null(tuple(distinct.index(level) for level in levels))
    smallest_p = float(null.tail[-1])
    alpha = max(criteria.alpha, smallest_p)
    run = TrendInputs(on_device, encoder.to(device), n_questions, null, alpha, torch.device(device))
    limits = run.limits()
    permutations = Permutations(null, seed)
    found: list[dict[str, torch.Tensor]] = []
    for latents in tiles(encoder, run.tiling.latents):
        found.append(_full_sample(run, latents, limits, [float(level) for level in levels], method == "page"))
        signs = found[-1].pop("signs")
        permutations.add(signs[found[-1]["firing"] >= criteria.min_firing])
        if on_tile is not None:
            on_tile(latents.stop - latents.start)
    columns = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    fires = columns["firing"] >= criteria.min_firing
    if method == "page":
        columns |= _selected_by_page(columns, fires, criteria)
    else:
        candidates = (fires & (columns["p_exact"] <= alpha)).nonzero()[:, 0]
        counts = resample_counts(strata or [0] * n_questions, n_resamples, seed, device)[:, 1:]
        columns |= _selected_by_bootstrap(run, candidates, limits, counts, criteria)
    return TrendResult(
        _table(columns),
        tuple(distinct),
        n_questions,
        int(fires.sum()),
        int(fires.sum()) * smallest_p,
        permutations.false_discoveries(),
        criteria.alpha < smallest_p,
    )


def _full_sample(
    run: TrendInputs,
    latents: slice,
    limits: list[torch.Tensor] | None,
    levels: Sequence[float],
    with_page: bool,
) -> dict[str, torch.Tensor]:
    """Statistics of latents on the full sample: columns [T], `means` [T, C] and `signs` [T, pairs]."""
    n, n_conditions = run.n_questions, len(levels)
    sums = PartialSums(n_conditions, latents, 0, run.device)
    page = PageSums(run.null, latents, run.device) if with_page else None
    run.add_to(sums, run.encoder, limits, torch.zeros(n, 0, device=run.device), page)
    means = sums.means(n)
    trends = reduce_trends(means, run.null, run.alpha)
    slope = _theil_sen(means[:, :, 0], levels)
    mean = sums.total.sum(0) / (n * n_conditions)
    variance = sums.squares.sum(0) / (n * n_conditions) - mean.square()
    span = (max(levels) - min(levels)) / variance.clamp_min(1e-30).sqrt()
    found = {
        "latent": torch.arange(latents.start, latents.stop, dtype=torch.int32),
        "direction": trends.s.sign().to(torch.int8),
        "rho": trends.rho,
        "s": trends.s,
        "p_exact": _p_exact(trends, run.null),
        "slope": slope,
        "score": torch.where(variance > 0, slope.abs() * span, 0.0).float(),
        "firing": (sums.n_firing / n).amax(0),
        "means": means[:, :, 0].T,
        "signs": pair_signs(means[:, :, 0]),
    }
    if page is not None:
        test = page.reduce(n)
        found |= {"page_z": test.z, "page_p": test.p}
    return found


def _p_exact(trends: Trends, null: TrendNull) -> torch.Tensor:
    """float64 [T]; few latents differ in S and ties, so that each way is asked for once."""
    n = len(null.ranks)
    n_a1, n_a2 = n * (n - 1) + 1, n * (n - 1) ** 2 + 1
    keys = (trends.s.abs().long() * n_a1 + trends.a1) * n_a2 + trends.a2
    kinds, kind_of = torch.unique(keys, return_inverse=True)
    known = [null.p_value(key // n_a2 // n_a1, key // n_a2 % n_a1, key % n_a2) for key in kinds.tolist()]
    return torch.tensor(known, dtype=torch.float64, device=keys.device)[kind_of]


def _selected_by_bootstrap(
    run: TrendInputs,
    candidates: torch.Tensor,
    limits: list[torch.Tensor] | None,
    counts: torch.Tensor,
    criteria: Criteria,
) -> dict[str, torch.Tensor]:
    """The columns that resampling the candidates gives, NaN for all others."""
    stability, mean_abs_rho = (torch.full((run.encoder.d_sae,), torch.nan) for _ in range(2))
    for start in range(0, len(candidates), run.n_resampled):
        part = candidates[start : start + run.n_resampled]
        sums = PartialSums(len(run.activations), slice(0, len(part)), counts.shape[1], run.device)
        run.add_to(sums, run.encoder.select(part), limits, counts)
        trends = reduce_trends(sums.means(run.n_questions), run.null, run.alpha)
        stability[part.cpu()] = trends.stability.cpu()
        mean_abs_rho[part.cpu()] = trends.mean_abs_rho.cpu()
    selected = (stability >= criteria.stability) & (mean_abs_rho >= criteria.rho_min)
    return {"stability": stability, "mean_abs_rho": mean_abs_rho, "selected": selected}


def _selected_by_page(
    columns: dict[str, torch.Tensor], fires: torch.Tensor, criteria: Criteria
) -> dict[str, torch.Tensor]:
    """The columns that Page's test decides; none is resampled."""
    direction = columns["page_z"].sign()
    selected = fires & (columns["rho"] * direction >= criteria.rho_min)
    selected[fires] &= benjamini_hochberg(columns["page_p"][fires], criteria.page_fdr)
    none = torch.full((len(fires),), torch.nan)
    return {
        "direction": direction.to(torch.int8),
        "stability": none,
        "mean_abs_rho": none,
        "selected": selected,
    }


_COLUMNS = (
    *("latent", "direction", "rho", "s", "p_exact", "slope", "score", "stability", "mean_abs_rho", "firing"),
    *("selected", "page_z", "page_p"),
)


def _table(columns: dict[str, torch.Tensor]) -> pa.Table:
    arrays = {}
    for name in _COLUMNS:
        if name in columns:
            values = columns[name].cpu()
            # Only what was not resampled is NaN.
            arrays[name] = pa.array(values.numpy(), mask=values.isnan().numpy())
    means = pa.array(columns["means"].cpu().contiguous().view(-1).numpy())
    arrays["means"] = pa.FixedSizeListArray.from_arrays(means, columns["means"].shape[1])
    return pa.table(arrays)


def _theil_sen(means: torch.Tensor, levels: Sequence[float]) -> torch.Tensor:
    """The median slope over pairs of conditions with different levels; means [C, T]."""
    slopes = [
        (means[b] - means[a]) / (levels[b] - levels[a])
        for a, b in itertools.combinations(range(len(levels)), 2)
        if levels[a] != levels[b]
    ]
    ordered = torch.stack(slopes).sort(0).values
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _check(
    activations: Sequence[Rows],
    levels: Sequence[float],
    encoder: Encoder,
    strata: Sequence[object] | None,
) -> int:
    """The number of questions; raises InputError for what cannot be compared."""
    if len(activations) != len(levels):
        raise InputError(f"{len(activations)} conditions and {len(levels)} levels; each condition needs one")
    if len(set(levels)) < 3:
        raise InputError(f"the levels are {sorted(set(levels))}; a trend needs at least three different ones")
    n_questions = activations[0].shape[0]
    for place, (x, level) in enumerate(zip(activations, levels, strict=True)):
        check_rows(x, f"condition {place} (level {level:g})", (n_questions, encoder.d_model))
    if strata is not None and len(strata) != n_questions:
        raise InputError(f"{len(strata)} strata for {n_questions} questions")
    return n_questions
