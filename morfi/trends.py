"""The latents that rise or fall with the level of a condition, with honest error control."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import torch

from morfi.errors import InputError
from morfi.kernels.encode import (
    Encoder,
    Nonzeros,
    encode_tile,
    prepare,
    resampled_sums,
    row_limits,
    tiles,
)
from morfi.kernels.null import TrendNull, trend_null
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend import PairwiseTrend, Trends

TILE = 512  # latents at a time: what a tile needs stays in a core's cache
CHUNK = 2048  # questions at a time
_N_PERMUTATIONS = 5040  # of the levels; drawn where there are more


class Rows(Protocol):
    """Residual streams of one condition, [n_questions, d_model]: a tensor, or what reads its rows from disk.

    Rows are asked for as slices, a chunk at a time and again for every tile of latents, so that memory need
    not hold all conditions.
    """

    @property
    def shape(self) -> Sequence[int]:
        """n_questions and d_model."""

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """These rows, of any float dtype, on any device."""


@dataclass(frozen=True, slots=True)
class Criteria:
    """When a latent is selected, see `find_trends`."""

    alpha: float = 0.001
    stability: float = 0.95
    rho_min: float = 0.9
    min_firing: float = 0.01


@dataclass(frozen=True, slots=True)
class FalseDiscoveries:
    """Of the latents with |S| of at least `s`: how many there are, and the share expected by chance."""

    s: int
    n_found: int
    fdr: float


@dataclass(frozen=True, eq=False, slots=True)
class TrendResult:
    """What `find_trends` found.

    `latents` has a row for each latent: latent, direction (1 rises, -1 falls, 0 neither), rho, s, p_exact,
    slope (per unit of level), score (|slope| over the whole range of levels, in standard deviations over
    questions), stability, mean_abs_rho, firing (share of questions, of the condition with most), selected,
    means (over questions, float32 of each condition, in the order they were given).
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
    n_resamples: int = 1000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    on_tile: Callable[[int], None] | None = None,
) -> TrendResult:
    """The latents whose mean over questions rises or falls with the level (after arXiv 2604.26866).

    `activations` holds `Rows` [n_questions, d_model] for each condition, the same questions in the same
    order; `levels` their levels, where several conditions of one level are replicate trainings. A
    latent is selected if S keeps its sign with an exact p of at most alpha in the `stability` share of the
    resamples, mean |rho| over them is at least `rho_min`, and it fires on `min_firing` of the questions in
    some condition. Resamples draw questions within `strata` (their relations), so they say how stable a
    trend is over questions, not over trainings: that is what replicates and `fdr` are for. `on_tile` is
    called with the number of latents that are done. The result does not depend on the order of the
    conditions. Raises InputError for conditions that cannot be compared.
    """
    criteria = criteria or Criteria()
    n_questions = _check(activations, levels, encoder, strata)
    distinct = sorted(set(levels))
    null = trend_null(tuple(distinct.index(level) for level in levels))
    run = _Run(
        list(activations),
        [float(level) for level in levels],
        encoder.to(device),
        resample_counts(strata or [0] * n_questions, n_resamples, seed).to(device),
        null,
        max(criteria.alpha, float(null.tail[-1])),
    )
    limits = [run.limits(condition) for condition in range(len(activations))]
    permutations = _Permutations(null, seed)
    tables = []
    for latents in tiles(encoder, TILE):
        tile = run.tile(latents, limits)
        fires = tile.firing >= criteria.min_firing
        permutations.add(tile.signs[fires])
        tables.append(_table(tile, latents, criteria, run, fires))
        if on_tile is not None:
            on_tile(latents.stop - latents.start)
    fdr = permutations.false_discoveries()
    return TrendResult(
        pa.concat_tables(tables),
        tuple(distinct),
        n_questions,
        permutations.n_latents,
        permutations.n_latents * float(null.tail[-1]),
        fdr,
        criteria.alpha < float(null.tail[-1]),
    )


@dataclass(frozen=True, eq=False, slots=True)
class _Tile:
    """What is known of a tile's latents: tensors [T], `means` [T, C], `signs` [T, pairs]."""

    trends: Trends
    means: torch.Tensor
    signs: torch.Tensor
    slope: torch.Tensor
    deviation: torch.Tensor
    firing: torch.Tensor


@dataclass(frozen=True, eq=False, slots=True)
class _Run:
    """The inputs of one run, on its device."""

    activations: list[Rows]
    levels: list[float]
    encoder: Encoder
    counts: torch.Tensor  # float32 [n_questions, 1 + n_resamples]
    null: TrendNull
    alpha: float

    def prepared(self, condition: int, rows: slice) -> torch.Tensor:
        """What the encoder multiplies of these questions."""
        return prepare(self.activations[condition][rows].to(self.counts.device), self.encoder)

    def limits(self, condition: int) -> torch.Tensor | None:
        """What `row_limits` gives for all questions."""
        found = [
            row_limits(self.prepared(condition, rows), self.encoder, TILE)
            for rows in _chunks(len(self.counts))
        ]
        known = [one for one in found if one is not None]
        return torch.cat(known) if known else None

    def tile(self, latents: slice, limits: Sequence[torch.Tensor | None]) -> _Tile:
        """Encodes the latents under every condition and reduces them."""
        pairwise = PairwiseTrend(self.null)
        n = len(self.counts)
        full, firing, squares = [], [], torch.zeros(())
        for condition in range(len(self.activations)):
            sums, n_firing, square = torch.zeros(()), torch.zeros(()), torch.zeros(())
            for rows in _chunks(n):
                limit = limits[condition]
                found = encode_tile(
                    self.prepared(condition, rows),
                    self.encoder,
                    latents,
                    None if limit is None else limit[rows],
                )
                sums = sums + resampled_sums(found, self.counts[rows])
                n_firing = n_firing + found.starts.diff()
                square = square + resampled_sums(
                    Nonzeros(found.starts, found.questions, found.values.square()), self.counts[rows, :1]
                )
            means = sums / n
            pairwise.add(condition, means)
            full.append(means[:, 0])
            firing.append(n_firing / n)
            squares = squares + square[:, 0]
        by_condition = torch.stack(full)  # [C, T]
        variance = squares / (n * len(full)) - by_condition.mean(0).square()
        return _Tile(
            pairwise.reduce(self.alpha),
            by_condition.T,
            pairwise.signs(),
            _theil_sen(by_condition, self.levels),
            variance.clamp_min(0).sqrt(),
            torch.stack(firing).amax(0),
        )


class _Permutations:
    """How often S is how large when the levels are shuffled, the same way for all latents: the FDR's null."""

    def __init__(self, null: TrendNull, seed: int) -> None:
        n = len(null.ranks)
        if math.factorial(n) <= _N_PERMUTATIONS:
            orders = torch.tensor(list(itertools.permutations(range(n))))
        else:
            generator = torch.Generator().manual_seed(seed)
            drawn = [torch.randperm(n, generator=generator) for _ in range(_N_PERMUTATIONS - 1)]
            orders = torch.stack([torch.arange(n), *drawn])
        ranks = torch.tensor(null.ranks)[orders]  # [P, C]
        first, second = torch.triu_indices(n, n, 1)
        self._weights = (ranks[:, second] - ranks[:, first]).sign().float().T.contiguous()  # [pairs, P]
        self._histogram = torch.zeros(len(orders), null.n_pairs + 1, dtype=torch.int64)
        self.n_latents = 0

    def add(self, signs: torch.Tensor) -> None:
        """Counts the latents of `signs` float32 [T, pairs]."""
        if not len(signs):
            return
        s = (signs.cpu() @ self._weights).abs_().long()  # [T, P]: exact, the sums are small
        self._histogram.scatter_add_(1, s.T, torch.ones_like(s.T))
        self.n_latents += len(signs)

    def false_discoveries(self) -> tuple[FalseDiscoveries, ...]:
        """For every |S| that is found, from the largest: the median over shuffles against what was found.

        The first order is the true one.
        """
        at_least = self._histogram.flip(1).cumsum(1).flip(1)
        found = []
        for s in range(self._histogram.shape[1] - 1, 0, -1):
            n_found = int(at_least[0, s])
            if int(self._histogram[0, s]):
                expected = float(at_least[:, s].double().median())
                found.append(FalseDiscoveries(s, n_found, min(1.0, expected / n_found)))
        return tuple(found)


def _table(tile: _Tile, latents: slice, criteria: Criteria, run: _Run, fires: torch.Tensor) -> pa.Table:
    trends = tile.trends
    null, span = run.null, max(run.levels) - min(run.levels)
    stable = (trends.stability >= criteria.stability) & (trends.mean_abs_rho >= criteria.rho_min)
    known: dict[tuple[int, int, int], float] = {}
    p_exact = []
    for key in zip(trends.s.tolist(), trends.a1.tolist(), trends.a2.tolist(), strict=True):
        if key not in known:
            known[key] = null.p_value(*key)
        p_exact.append(known[key])
    columns = {
        "latent": torch.arange(latents.start, latents.stop, dtype=torch.int32),
        "direction": trends.s.sign().to(torch.int8),
        "rho": trends.rho,
        "s": trends.s,
        "p_exact": torch.tensor(p_exact, dtype=torch.float64),
        "slope": tile.slope,
        "score": torch.where(
            tile.deviation > 0, tile.slope.abs() * span / tile.deviation.clamp_min(1e-30), 0.0
        ),
        "stability": trends.stability,
        "mean_abs_rho": trends.mean_abs_rho,
        "firing": tile.firing,
        "selected": stable & fires,
    }
    arrays = {name: pa.array(column.cpu().numpy()) for name, column in columns.items()}
    means = pa.array(tile.means.cpu().contiguous().view(-1).numpy())
    return pa.table(arrays | {"means": pa.FixedSizeListArray.from_arrays(means, tile.means.shape[1])})


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
        _check_rows(x, f"condition {place} (level {level:g})", (n_questions, encoder.d_model))
    if strata is not None and len(strata) != n_questions:
        raise InputError(f"{len(strata)} strata for {n_questions} questions")
    return n_questions


def _check_rows(x: Rows, where: str, shape: tuple[int, int]) -> None:
    """Raises InputError unless these are finite floats of the shape, n_questions and d_model."""
    if len(x.shape) != 2 or x.shape[1] != shape[1]:
        raise InputError(f"{where} has the shape {tuple(x.shape)}; the SAE reads [n_questions, {shape[1]}]")
    if x.shape[0] != shape[0] or not shape[0]:
        raise InputError(f"{where} has {x.shape[0]} questions, the first condition {shape[0]}")
    for rows in _chunks(shape[0]):
        chunk = x[rows]
        if not chunk.is_floating_point():
            raise InputError(f"{where} holds {chunk.dtype}; activations are floats")
        if tuple(chunk.shape) != (min(rows.stop, shape[0]) - rows.start, shape[1]):
            raise InputError(f"{where} gives {tuple(chunk.shape)} for questions {rows.start} to {rows.stop}")
        finite = chunk.isfinite().all(1)
        if not bool(finite.all()):
            question = rows.start + int((~finite).nonzero()[0])
            raise InputError(f"{where} holds NaN or infinity, first in question {question}; capture it again")


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]
