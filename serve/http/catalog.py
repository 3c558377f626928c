"""A find run that a server shows: latents, and the questions that they fire on."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint
from morfi.conditions.condition import AnyCondition
from morfi.conditions.levels import EPOCHS, Property
from morfi.conditions.load import load_series
from morfi.conditions.series import Series
from morfi.errors import InputError
from morfi.latents.activations import LEVEL
from morfi.latents.capture import CaptureRun
from morfi.latents.find import Found, load_found
from morfi.questions.question import Question
from morfi.runs.settings import settings_of
from morfi.serve.http.steerable import N_SHOWN, ServedSae, name_of
from morfi.store.records import FalseDiscoveriesRow, TrendSummaryRow
from morfi.terminal import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from morfi.store import Store

N_BINS = 20
QUANTILES = (0.9, 0.75, 0.5, 0.25)
DIRECTIONS = {1: "rising", -1: "falling", 0: "none"}
_COLUMNS = {"score": "score", "id": "latent", "rho": "rho", "slope": "slope", "firing": "firing"}


@dataclass(frozen=True, slots=True)
class ActiveQuestion:
    """A question and a latent's activation at the last token of its prompt.

    `quantile` is its place among the questions that the latent fires on: 1 is the largest activation.
    """

    question: Question
    activation: float
    quantile: float


@dataclass(frozen=True, slots=True)
class Density:
    """How many questions have activations between neighbouring `edges`; those where it is 0 are left out."""

    n_questions: int
    n_firing: int
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, eq=False, slots=True)
class Firing:
    """A latent's activation on each question: `values` float32 [n_questions]."""

    values: torch.Tensor
    questions: Sequence[Question]

    @property
    def top(self) -> list[ActiveQuestion]:
        """The questions on which it is largest; those where it is 0 are left out."""
        return self._ranked()[:N_SHOWN]

    @property
    def at_quantiles(self) -> list[ActiveQuestion]:
        """The questions at QUANTILES of those that it fires on, each once."""
        ranked = self._ranked()
        places = [round((1 - quantile) * (len(ranked) - 1)) for quantile in QUANTILES]
        return [ranked[place] for place in dict.fromkeys(places)] if ranked else []

    @property
    def density(self) -> Density:
        """A histogram of the activations where it fires."""
        import torch

        firing = self.values[self.values > 0]
        if not len(firing):
            return Density(len(self.values), 0, [], [])
        counts, edges = torch.histogram(firing, N_BINS, range=(0.0, float(firing.max())))
        return Density(len(self.values), len(firing), edges.tolist(), counts.int().tolist())

    def _ranked(self) -> list[ActiveQuestion]:
        n = int((self.values > 0).sum())
        best = self.values.topk(n)
        return [
            ActiveQuestion(self.questions[place], value, 1 - rank / (n - 1) if n > 1 else 1.0)
            for rank, (place, value) in enumerate(
                zip(best.indices.tolist(), best.values.tolist(), strict=True)
            )
        ]


@dataclass(frozen=True, slots=True)
class Chance:
    """The trends that chance alone would give a find run; false discoveries from the largest |S|."""

    summary: TrendSummaryRow
    false_discoveries: tuple[FalseDiscoveriesRow, ...]


@dataclass(eq=False)
class Catalog:
    """A find run with the series behind it; `checkpoints` by the id that clients use, the base first."""

    store: Store
    found: Found
    series: Series
    sae: ServedSae
    checkpoints: Mapping[str, AnyCondition] = field(init=False)
    _norms: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkpoints = {condition.id: condition for condition in self.series.conditions}

    @property
    def run_id(self) -> str:
        """The find run."""
        return self.found.run.run_id

    @property
    def layer(self) -> int:
        """The layer after which its latents are steered."""
        return self.found.layer

    @property
    def bos(self) -> str:
        """The --bos with which the base model was asked what it knows, and every prompt since."""
        return self.series.bos

    @property
    def levels(self) -> list[float]:
        """The level of each condition, in the order of a latent's means."""
        return self.found.activations.levels

    @property
    def order(self) -> Property:
        """The numbers in `levels`: of the series' property, or EPOCHS."""
        return self.series.varied if self.found.activations.axis.along == LEVEL else EPOCHS

    @functools.cached_property
    def chance(self) -> Chance:
        """The trends that chance alone would give."""
        run_id = self.run_id
        summaries = self.store.trend_summaries(run_id)
        if not summaries:
            raise InputError(f"{run_id} has not ended; give its command again to finish it")
        rates = self.store.false_discoveries(run_id)
        axis = summaries[0].axis  # of a run along both axes, the level's, as the latents' means are
        return Chance(summaries[0], tuple(one for one in rates if one.axis == axis))

    @property
    def n_selected(self) -> int:
        """Number of selected latents."""
        return sum(self.found.latents["selected"].to_pylist())

    def with_chance(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A latent's row with the false discovery rate of those whose |S| is as large as its own."""
        known = {one.s: one.fdr for one in self.chance.false_discoveries}
        return {**row, "false_discovery_rate": known.get(abs(row["s"]))}

    def median_norm(self, ckpt_sha256: str) -> float:
        """The unit of strengths for this checkpoint."""
        if ckpt_sha256 not in self._norms:
            self._norms[ckpt_sha256] = self.found.median_norm(ckpt_sha256)
        return self._norms[ckpt_sha256]

    def open(self, name: str) -> Checkpoint:
        """The checkpoint of an id; raises InputError for files that are not as they were."""
        return self.series.open(self.checkpoints[name])

    def id_of(self, name: str) -> str | None:
        """The id that `name` stands for: an id, or "M_100" for a level; None for anything else.

        A level's checkpoint is that of the find run's epoch setting, and of the lowest seed.
        """
        if name in self.checkpoints:
            return name
        wanted = (name, self.found.activations.epochs)
        alike = (found for found, one in self.checkpoints.items() if (one.name, one.epoch_setting) == wanted)
        return next(alike, None)

    def latents(self, *, direction: str, selected: bool | None, sort: str, descending: bool) -> pa.Table:
        """All latents of a direction ("any" for every), selected or not (None: both), in order."""
        import pyarrow.compute as pc

        table = self.found.latents
        if direction != "any":
            numbers = {word: number for number, word in DIRECTIONS.items()}
            table = table.filter(pc.equal(table["direction"], numbers[direction]))
        if selected is not None:
            table = table.filter(pc.equal(table["selected"], selected))
        order = [(_COLUMNS[sort], "descending" if descending else "ascending")]
        return table.sort_by(order if sort == "id" else [*order, ("latent", "ascending")])

    def rows(self, latents: Sequence[int]) -> list[dict[str, Any]]:
        """The findings of the find run on some latents, in their order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self.found.latents
        places = pc.index_in(pa.array(latents, table["latent"].type), table["latent"].combine_chunks())
        return shown(table.take(places))

    def firing(self, latent: int, ckpt_sha256: str) -> Firing:
        """The latent's activations on the questions, under this checkpoint.

        Under the highest level's where this one was not captured.
        """
        activations = self.found.activations
        residuals = self.found.residuals(ckpt_sha256) or activations.residuals[-1]
        return Firing(self._activation(latent, residuals.values), activations.questions)

    def _activation(self, latent: int, x: Any) -> Any:
        """float32 [n_questions]: one latent's activation on x [n_questions, d_model]."""
        import torch

        from morfi.kernels.encoder import encode_reference

        encoder = self.sae.sae.encoder
        if encoder.activation == "topk":
            return torch.cat([encode_reference(rows, encoder)[:, latent] for rows in x.split(256)])
        return encode_reference(x, encoder.select(torch.tensor([latent])))[:, 0]


def load_catalog(store: Store, run_id: str, dtype: str | None, progress: Progress) -> Catalog:
    """The catalog of the find run `run_id`; raises InputError where what it rests on is not as it was."""
    progress.phase("reading the find run")
    found = load_found(store, run_id)
    captured = settings_of(found.activations.run, CaptureRun)
    series = load_series(captured.ckpts, store, dtype, progress, sha256=captured.series_sha256)
    sae = ServedSae(name_of(found.settings.sae), found.sae, found.settings.sae_sha256, found.layer)
    catalog = Catalog(store, found, series, sae)
    _ = catalog.chance  # read now: while a server runs, others write to the store
    return catalog


def shown(table: pa.Table) -> list[dict[str, Any]]:
    """Rows of latents as clients get them; numbers that are none become null."""
    return [
        {
            "id": row["latent"],
            "direction": DIRECTIONS[row["direction"]],
            "selected": row["selected"],
            "score": _finite(row["score"]),
            "rho": _finite(row["rho"]),
            "s": row["s"],
            "p": _finite(row["p_exact"]),
            "slope": _finite(row["slope"]),
            "stability": _finite(row["stability"]),
            "firing": _finite(row["firing"]),
            "means": [_finite(mean) for mean in row["means"]],
        }
        for row in table.to_pylist()
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
