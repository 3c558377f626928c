"""The latents that rise or fall with the level of a condition, with honest error control."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder, most_norm, tiles
from morfi.kernels.null import TrendNull, trend_null
from morfi.kernels.page import PageSums
from morfi.kernels.resample import resample_counts
from morfi.kernels.sums import PartialSums
from morfi.kernels.trend import pair_signs, reduce_trends
from morfi.kernels.trend_reference import Trends
from morfi.latents.false_discoveries import FalseDiscoveries, Permutations
from morfi.latents.rows import Rows, check_rows, rows_of
from morfi.latents.sae import Sae, encoder_of
from morfi.latents.selection import (
    Criteria,
    Method,
    selected_by_page,
    selected_by_resampling,
    smallest_s,
)
from morfi.latents.trend_inputs import TrendInputs

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True, eq=False, slots=True)
class TrendResult:
    """The result of `find_trends`.

    `latents` has a row for each latent: latent, direction (1 rises, -1 falls, 0 neither), rho (of the
    levels, each by the mean of its replicates, as is mean_abs_rho), s, p_exact, slope (per unit of level),
    score (|slope| over the whole range of levels, in standard deviations over questions), stability and
    mean_abs_rho (null where the full sample rules the latent out already), firing (share of questions, of
    the condition with most), selected, means (over questions, float32 of each condition, in the order they
    were given); with the method "page" also page_z and page_p.
    `n_firing` of them fire on enough questions; `expected_false` of those would be perfect trends by chance.
    `smallest_s`: with the method "fdr", the least |S| that was selected from; None where none qualifies.
    `is_descriptive`: there are so few conditions that even a perfect trend has a p above `fdr`, so that
    nothing can be selected, or with the method "bootstrap" above `alpha`, where a perfect one was asked for
    instead.
    """

    latents: pa.Table
    levels: tuple[float, ...]
    n_questions: int
    n_firing: int
    expected_false: float
    fdr: tuple[FalseDiscoveries, ...]
    smallest_s: int | None
    is_descriptive: bool

    @property
    def n_selected(self) -> int:
        """How many latents were selected."""
        return sum(self.latents["selected"].to_pylist())


def find_trends(
    activations: Sequence[Rows | np.ndarray],
    levels: Sequence[float],
    sae: Encoder | Sae | SAE[Any],
    *,
    strata: Sequence[object] | None = None,
    criteria: Criteria | None = None,
    method: Method = "fdr",
    n_resamples: int = 1000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_tile: Callable[[int], None] | None = None,
) -> TrendResult:
    """The latents whose mean over questions rises or falls with the level (after arXiv 2604.26866).

    `activations` holds a tensor, array or `Rows` [n_questions, d_model] for each condition, the same
    questions in the same order; `levels` a number for each, in any order and at any distance, where
    conditions of one level are replicate trainings. `sae` is that of `load_sae` or SAELens, or its encoder.

    A latent is selected if it fires on `min_firing` of the questions in some condition, and
    - "fdr": |S| is at least the smallest whose p and false discovery rate by shuffled levels, with replicates
      also by p (Benjamini-Hochberg), are at most `fdr`; S keeps its sign in the `stability` share of the
      resamples, mean |rho| over them is at least `rho_min`;
    - "bootstrap" (the paper's rule): S has an exact p of at most `alpha` and keeps its sign with such a p in
      the `stability` share of the resamples, mean |rho| over them is at least `rho_min`;
    - "page": Page's L over questions is significant at a false discovery rate of `page_fdr` among those that
      fire (Benjamini-Hochberg), with replicates S too, and rho is at least `rho_min` in L's direction.
    S and p compare all conditions; rho ranks the levels, each by the mean of its replicates. Resamples draw
    questions within `strata` (their relations), so they say how stable a trend is over questions, not over
    trainings: that is what replicates and the false discovery rate are for.

    `on_tile` is called with the number of latents that were encoded. The result does not depend on the order
    of the conditions. Raises InputError for conditions that cannot be compared and for what is not finite.

    >>> find_trends(residuals, levels=[0, 50, 100], sae=load_sae("my-sae")).n_selected
    """
    criteria = criteria or Criteria()
    _check_whole(n_resamples=(n_resamples, 1, 2**31 - 1), seed=(seed, 0, 2**63 - 1))
    run, strata = _inputs(activations, levels, encoder_of(sae), torch.device(device), strata)
    null, limits, permutations = run.null, run.limits(), Permutations(run.null, seed)
    alpha = criteria.alpha_of(method, null)
    found: list[dict[str, torch.Tensor]] = []
    for latents in tiles(run.encoder, run.tiling.latents):
        found.append(_full_sample(run, latents, limits, method == "page"))
        signs = found[-1].pop("signs")
        permutations.add(signs[found[-1]["firing"] >= criteria.min_firing])
        if on_tile is not None:
            on_tile(latents.stop - latents.start)
    columns = {name: torch.cat([one[name] for one in found]) for name in found[0]}
    fires = columns["firing"] >= criteria.min_firing
    fdr = permutations.false_discoveries()
    least = smallest_s(fdr, null, criteria.fdr, int(fires.sum())) if method == "fdr" else None
    if method == "page":
        columns |= selected_by_page(columns, fires, criteria, null)
    else:
        enough = null.n_pairs + 1 if least is None else least
        passes = columns["s"].abs() >= enough if method == "fdr" else columns["p_exact"] <= alpha
        candidates = (fires & passes).nonzero()[:, 0]
        counts = resample_counts(strata, n_resamples, seed, device)[:, 1:]
        columns |= selected_by_resampling(run, candidates, limits, counts, criteria, alpha=alpha)
    return TrendResult(
        latents=_table(columns),
        levels=tuple(sorted(set(run.levels))),
        n_questions=run.n_questions,
        n_firing=int(fires.sum()),
        expected_false=int(fires.sum()) * float(null.tail[-1]),
        fdr=fdr,
        smallest_s=least,
        is_descriptive=criteria.is_descriptive(method, null),
    )


def _check_whole(**bounded: tuple[Any, int, int]) -> None:
    for name, (value, least, most) in bounded.items():
        is_whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not is_whole or not least <= value <= most:
            raise InputError(f"{name} is {value!r}; expected a whole number from {least} to {most}")


def _full_sample(
    run: TrendInputs,
    latents: slice,
    limits: list[torch.Tensor] | None,
    with_page: bool,
) -> dict[str, torch.Tensor]:
    """Statistics of latents on the full sample: columns [T], `means` [T, C] and `signs` [T, pairs]."""
    n, levels, n_conditions = run.n_questions, run.levels, len(run.levels)
    sums = PartialSums(n_conditions, latents, 0, run.device)
    page = PageSums(run.null, latents, run.device) if with_page else None
    run.add_to(sums, run.encoder, limits, torch.zeros(n, 0, device=run.device), page)
    means = sums.means(n)
    trends = reduce_trends(means, run.null, 1.0)
    span = max(levels) - min(levels)
    rise = _theil_sen(means[:, :, 0], [level / span for level in levels])
    mean = sums.total.sum(0) / (n * n_conditions)
    variance = sums.squares.sum(0) / (n * n_conditions) - mean.square()
    found = {
        "latent": torch.arange(latents.start, latents.stop, dtype=torch.int32),
        "direction": trends.s.sign().to(torch.int8),
        "rho": trends.rho,
        "s": trends.s,
        "p_exact": _p_exact(trends, run.null),
        "slope": (rise / span).float(),
        "score": torch.where(variance > 0, rise.abs() / variance.clamp_min(1e-30).sqrt(), 0.0).float(),
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
    """The median slope over pairs of conditions with different levels, float64 [T]; means [C, T]."""
    means = means.double()
    slopes = [
        (means[b] - means[a]) / (levels[b] - levels[a])
        for a, b in itertools.combinations(range(len(levels)), 2)
        if levels[a] != levels[b]
    ]
    ordered = torch.stack(slopes).sort(0).values
    n = len(ordered)
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def _check_weights(encoder: Encoder) -> None:
    """Raises InputError for NaN or infinity, which `load_sae` refuses and an `Encoder` may hold."""
    for field in fields(encoder):
        value = getattr(encoder, field.name)
        if isinstance(value, torch.Tensor) and not bool(torch.stack(value.aminmax()).isfinite().all()):
            raise InputError(f"the SAE's {field.name} holds NaN or infinity")


def _inputs(
    activations: Sequence[Rows | np.ndarray],
    levels: Sequence[float],
    encoder: Encoder,
    device: torch.device,
    strata: Sequence[object] | None,
) -> tuple[TrendInputs, Sequence[object]]:
    """What is compared, on the device, and the questions' strata; raises InputError for what cannot be."""
    if len(activations) != len(levels):
        raise InputError(f"{len(activations)} conditions and {len(levels)} levels; each condition needs one")
    try:
        numbers = [float(level) for level in levels]
    except (TypeError, ValueError) as error:
        raise InputError(f"the levels are {list(levels)}; each must be a number") from error
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"the levels are {numbers}; each must be finite")
    distinct = sorted(set(numbers))
    if len(distinct) < 3:
        shown = ", ".join(f"{level:g}" for level in distinct)
        raise InputError(f"the levels are {shown}; a trend needs at least three different ones")
    if not 1e-20 <= (span := distinct[-1] - distinct[0]) <= 1e20:
        raise InputError(f"the levels span {span:g}, expected 1e-20 to 1e20; give them in another unit")
    where = [f"condition {place} (level {level:g})" for place, level in enumerate(numbers)]
    encoder = encoder.to(device)
    _check_weights(encoder)
    rows = [rows_of(x, name, device) for x, name in zip(activations, where, strict=True)]
    n_questions = rows[0].shape[0]
    most = most_norm(encoder, n_questions)
    for x, name in zip(rows, where, strict=True):
        check_rows(x, name, n_questions, encoder, most)
    strata = [0] * n_questions if strata is None else strata
    if len(strata) != n_questions:
        raise InputError(f"{len(strata)} strata for {n_questions} questions")
    if not all(isinstance(stratum, Hashable) for stratum in strata):
        raise InputError("a stratum is a name or a number, the same for the questions that it holds")
    null = trend_null(tuple(distinct.index(level) for level in numbers))
    inputs = TrendInputs(rows, tuple(numbers), encoder, n_questions, null, device)
    return inputs.in_one_way(), strata
