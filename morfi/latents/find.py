"""The latents that rise or fall with the level of a series: `morfi find`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

from morfi.device import device_name, is_gpu
from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.latents.activations import (
    EPOCHS,
    LEVEL,
    Activations,
    Axis,
    Residuals,
    captured_stream,
    layer_of,
    load_activations,
)
from morfi.latents.capture import CaptureRun
from morfi.latents.sae import Sae, load_sae
from morfi.latents.sae_check import Quality, SaeOnRun, check_explains, measure
from morfi.runs.life import Life, Ready, next_run
from morfi.runs.options import check_numbers, option, option_of
from morfi.runs.settings import settings_of
from morfi.store.records import ConditionRow, FalseDiscoveriesRow, RunKind, RunRecord, TrendSummaryRow
from morfi.terminal import Progress

if TYPE_CHECKING:
    import pyarrow as pa

    from morfi.latents.selection import Method
    from morfi.latents.trends import TrendResult
    from morfi.store import Store

QUESTIONS = ("all", "known", "unknown")
METHODS = ("fdr", "bootstrap", "page")
BOTH = "both"
ALONG = (LEVEL, EPOCHS, BOTH)
MIN_EXPLAINED = 0.5
MAX_RESAMPLES = 1_000_000  # their means are held at once
RULES = 2  # what selects, and how it is computed: a change raises this, for older runs hold other latents
OF_TRAININGS, OF_LEVELS = "trainings", "level means"
_RESAMPLING = ("method", "fdr", "bootstrap")


@dataclass(frozen=True, slots=True)
class FindConfig(SaeOnRun):
    """Everything that decides what is found; stored with it. The criteria are those of `find_trends`."""

    along: str = option("level; epochs, of one level; or both: latents whose trend holds on both.", LEVEL)
    at: float | None = option(
        "The level whose epochs are compared.", None, unset="the highest", when=("along", EPOCHS, BOTH)
    )
    questions: str = option("all, known or unknown: to the base model.", "all")
    method: str = option("fdr; bootstrap, the paper's; or page: Page's L, question by question.", "fdr")
    resamples: int = option("Bootstrap resamples of the questions.", 1000, when=_RESAMPLING)
    seed: int = 0
    fdr: float = option("False discovery rate by shuffled levels.", 0.05, when=("method", "fdr"))
    alpha: float = option("Largest p-value of a trend.", 0.001, when=("method", "bootstrap"))
    stability: float = option("Share of resamples that must show it.", 0.95, when=_RESAMPLING)
    rho_min: float = option("Least mean |rho| over the resamples, of replicates' means; with page, rho.", 0.9)
    min_firing: float = option("Share of questions that it fires on.", 0.01)
    page_fdr: float = option("False discovery rate of --method page.", 0.05, when=("method", "page"))
    min_explained: float = option("Variance that the SAE must explain.", MIN_EXPLAINED)
    force: bool = option("Use the SAE even where it explains less.", False)

    def __post_init__(self) -> None:
        SaeOnRun.__post_init__(self)
        check_numbers({"resamples": (self.resamples, 1, MAX_RESAMPLES), "seed": (self.seed, 0)})
        for name, known in (("questions", QUESTIONS), ("method", METHODS), ("along", ALONG)):
            if (given := getattr(self, name)) not in known:
                raise InputError(f'--{name} "{given}" is none of {", ".join(known)}')
        if self.at is not None and not math.isfinite(self.at):
            raise InputError(f"--at is {self.at:g}; expected a number")
        if not math.isfinite(self.min_explained) or self.min_explained > 1:
            raise InputError(f"--min-explained is {self.min_explained:g}; expected a number of at most 1")
        shares = ("fdr", "alpha", "stability", "rho_min", "min_firing", "page_fdr")
        for name in shares:
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise InputError(f"--{name.replace('_', '-')} is {value:g}; expected a number from 0 to 1")

    @property
    def axes(self) -> tuple[Axis, ...]:
        """What the checkpoints are compared along."""
        level, epochs = Axis(LEVEL, self.epochs), Axis(EPOCHS, at=self.at)
        return {LEVEL: (level,), EPOCHS: (epochs,), BOTH: (level, epochs)}[self.along]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRun(FindConfig):
    """The settings that a find run is stored with.

    `epochs` is the setting of M_ names: along epochs that of the last checkpoint. `rho_of` says what rho
    ranks: "trainings", or with replicates "level means", each over the trainings of a level.
    """

    layer: int
    epochs: str
    split_run: str | None
    property: str
    unit: str | None
    sae_sha256: str
    rho_of: str = OF_TRAININGS


def configure_find(given: Mapping[str, Any]) -> FindConfig:
    """The configuration of the options that were given (those not None), all of which mean something."""
    config = FindConfig(**{key: value for key, value in given.items() if value is not None})
    for one in fields(config):
        known = option_of(one)
        if known is None or known.when is None or given.get(one.name) is None:
            continue
        other, wanted = str(known.when[0]), known.when[1:]
        if (value := getattr(config, other)) not in wanted:
            raise InputError(f"--{one.name.replace('_', '-')} means nothing to --{other} {value}")
    if config.along == EPOCHS and config.epochs is not None:
        raise InputError("--epochs means nothing to --along epochs, which compares them all; leave it out")
    return config


def run_find(config: FindConfig, store: Store, progress: Progress, *, new: bool, command: str) -> str:
    """Finds the latents of `config`, stores them all, and returns the run that holds them.

    The same captures, SAE and settings give the same latents, so a run that there is already is returned,
    unless `new`. Raises InputError for an SAE that reads something else, or explains too little of these
    activations, and for captures that cannot be compared.
    """
    ready = ready_find(config, store, progress, new=new, command=command)
    ready.finish()
    return ready.result


def ready_find(config: FindConfig, store: Store, progress: Progress, *, new: bool, command: str) -> Ready:
    """The work of `run_find`; nothing is encoded before."""
    started = time.monotonic()
    if store.path.exists():
        store.prepare()
    progress.phase("loading the SAE")
    sae = load_sae(config.sae)
    captured_stream(store, config.activations).check_width(sae.encoder.d_model, f"--sae {config.sae}")
    layer = layer_of(store, config.activations, sae.layer, config.layer, config.sae)
    progress.phase("reading the activations")
    compared = [load_activations(store, config.activations, layer, axis) for axis in config.axes]
    found = compared[0]
    config = replace(
        config,
        activations=found.run.run_id,
        layer=layer,
        epochs=found.epochs,
        at=compared[-1].axis.at,
    )
    captured = settings_of(found.run, CaptureRun)
    kept = {name: getattr(captured, name) for name in ("split_run", "property", "unit")}
    replicated = any(len(set(one.levels)) < len(one.levels) for one in compared)
    rho_of = OF_LEVELS if replicated else OF_TRAININGS
    stored = asdict(FindRun(**asdict(config), **kept, sae_sha256=sae.sha256, rho_of=rho_of))
    decided = {**stored, "kind": RunKind.FIND, "activations": found.run.fingerprint, "rules": RULES}
    fingerprint = canonical_sha256({key: decided[key] for key in decided if key not in {"sae", *kept}})
    run = next_run(
        found.run,
        RunKind.FIND,
        config=stored,
        fingerprint=fingerprint,
        seed=config.seed,
        n_planned=sae.encoder.d_sae,
    )
    life = Life(run, store, progress, command).resumed(None if new else "auto")

    def work() -> Sequence[str]:
        counted = counted_questions(config, store, found)
        progress.phase("checking the SAE")
        qualities = _qualities(config, sae, compared, counted)
        progress.phase("looking for trends")
        progress.start(sae.encoder.d_sae * len(compared), 0, "latents")
        results = [_trends(config, sae, one, counted, on_tile=progress.advance) for one in compared]
        with life.attempt(started=started, device=device_name()):
            _add(store, life.run.run_id, list(zip(compared, results, strict=True)), qualities, sae=sae)
        return ()

    return Ready(life.run.run_id, None if store.trend_summaries(life.run.run_id) else work)


def _qualities(
    config: FindConfig, sae: Sae, compared: Sequence[Activations], counted: list[int]
) -> dict[str, Quality]:
    """How well the SAE renders each checkpoint, by its sha256; raises InputError where it does too badly."""
    every = {one.row.ckpt_sha256: one for axis in compared for one in axis.residuals}
    found = {sha256: measure(sae, [one.values[counted]]) for sha256, one in every.items()}
    named = [(one.condition.label, found[sha256]) for sha256, one in every.items()]
    check_explains(named, config.min_explained, force=config.force)
    return found


def counted_questions(config: FindConfig, store: Store, found: Activations) -> list[int]:
    """The places of the questions that count: all, or those that the base model knew, or did not."""
    if config.questions == "all":
        return list(range(len(found.questions)))
    split_run = settings_of(found.run, CaptureRun).split_run
    if split_run is None:
        raise InputError(
            f"--questions {config.questions}: no split run says what the base model of {found.run.run_id} "
            "knew; leave --questions out"
        )
    known = {row.question_id: row.known for row in store.knowledge(split_run)}
    wanted = config.questions == "known"
    kept = [place for place, question in enumerate(found.questions) if known[question.id] is wanted]
    if not kept:
        raise InputError(f"{found.run.run_id} holds no questions whose answer was {config.questions}")
    return kept


def _trends(
    config: FindConfig,
    sae: Sae,
    found: Activations,
    counted: list[int],
    *,
    on_tile: Callable[[int], None],
) -> TrendResult:
    from morfi.latents.selection import Criteria
    from morfi.latents.trends import find_trends

    return find_trends(
        [one.values[counted] for one in found.residuals],
        found.levels,
        sae.encoder,
        strata=[found.questions[place].relation for place in counted],
        criteria=Criteria(**{one.name: getattr(config, one.name) for one in fields(Criteria)}),
        method=cast("Method", config.method),
        n_resamples=config.resamples,
        seed=config.seed,
        device="cuda" if is_gpu() else "cpu",
        on_tile=on_tile,
    )


def _add(
    store: Store,
    run_id: str,
    results: Sequence[tuple[Activations, TrendResult]],
    qualities: Mapping[str, Quality],
    *,
    sae: Sae,
) -> None:
    """Stores all that was found; the summaries come last, for a run without them has not ended."""
    conditions, rates, summaries = [], [], []
    for found, result in results:
        axis = found.axis.along
        for position, one in enumerate(found.residuals):
            at, quality = one.condition, qualities[one.row.ckpt_sha256]
            conditions.append(
                ConditionRow(
                    axis,
                    position,
                    at.level,
                    at.seed,
                    at.epoch_setting,
                    at.epoch,
                    one.row.ckpt_sha256,
                    quality.explained_variance,
                    quality.l0,
                )
            )
        rates += [FalseDiscoveriesRow(axis, one.s, one.n_found, one.fdr) for one in result.fdr]
        summaries.append(
            TrendSummaryRow(
                axis,
                result.n_selected,
                result.n_questions,
                result.n_firing,
                result.expected_false,
                result.smallest_s,
                result.is_descriptive,
                sae.sha256,
                found.layer,
            )
        )
    store.add(run_id, conditions)
    store.add(run_id, rates)
    store.add_latents(run_id, joined([result.latents for _, result in results]))
    store.add(run_id, summaries)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The latents of a run: those of the first axis, selected where the other agrees, with its trend."""
    import pyarrow.compute as pc

    first, *others = tables
    for other in others:
        agree = pc.equal(first["direction"], other["direction"])
        selected = pc.and_(pc.and_(first["selected"], other["selected"]), agree)
        first = first.set_column(first.column_names.index("selected"), "selected", selected)
        for name, column in (("rho", "rho"), ("s", "s"), ("p", "p_exact"), ("means", "means")):
            first = first.append_column(f"epochs_{name}", other[column])
    return first


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """A find run: `latents` holds the columns of `latent_trend`, the selected latents first, by score.

    Of a run along both axes `activations` are those along the level.
    """

    run: RunRecord
    settings: FindRun
    sae: Sae
    activations: Activations
    latents: pa.Table

    @property
    def layer(self) -> int:
        """The decoder layer after which the SAE reads, and after which its latents are steered."""
        return self.activations.layer

    def residuals(self, ckpt_sha256: str) -> Residuals | None:
        """The residual streams of this checkpoint, if they were captured and compared."""
        own = [one for one in self.activations.residuals if one.row.ckpt_sha256 == ckpt_sha256]
        return own[0] if own else None

    def median_norm(self, ckpt_sha256: str) -> float:
        """The median length of this checkpoint's residual streams: the unit of steering strengths.

        Of all conditions' together where this checkpoint was not captured.
        """
        import torch

        own = self.residuals(ckpt_sha256)
        chosen = [own] if own is not None else list(self.activations.residuals)
        return float(torch.cat([one.values for one in chosen]).norm(dim=1).median())


def load_found(store: Store, run_id: str) -> Found:
    """The find run `run_id`, read back; raises InputError where its SAE or captures are not as they were."""
    run = store.run_of_kind(run_id, RunKind.FIND)
    if not store.trend_summaries(run.run_id):
        raise InputError(f"{run.run_id} has not ended; give its command again to finish it")
    config = settings_of(run, FindRun)
    sae = load_sae(config.sae)
    captured_stream(store, config.activations).check_width(sae.encoder.d_model, f"--sae {config.sae}")
    if sae.sha256 != config.sae_sha256:
        raise InputError(
            f"{config.sae} is not the SAE of {run.run_id}: its sha256 is {sae.sha256[:16]}, expected "
            f"{config.sae_sha256[:16]}; bring back that SAE, or run `morfi find` with this one"
        )
    activations = load_activations(store, config.activations, config.layer, config.axes[0])
    return Found(run, config, sae, activations, store.latents(run.run_id))
