"""The report of a stored run of any command: the text that it ends with, and the object of --json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from morfi.conditions.levels import varied_in
from morfi.interventions.config import SteerRun
from morfi.interventions.outcome import steered
from morfi.latents.capture import CaptureRun
from morfi.latents.find import FindRun
from morfi.latents.significance import significance
from morfi.report.answers import answer_lines, answer_object, counts_of
from morfi.report.evaluation import details_object, run_details, run_object, run_report, run_table
from morfi.report.following import ending
from morfi.report.knowledge import knowledge_object, knowledge_table
from morfi.report.mixtures import mixture_object, mixture_table
from morfi.report.steering import steer_object, steer_table
from morfi.report.sweep import sweep_object, sweep_table
from morfi.report.training import training_object, training_table
from morfi.report.trends import capture_object, capture_table, trend_object, trend_table
from morfi.runs.settings import settings_of
from morfi.store import Store
from morfi.store.records import RunKind, RunRecord, RunSummary
from morfi.training.mixtures import Dropped, MixConfig
from morfi.words import counted


@dataclass(frozen=True, slots=True)
class Report:
    """The answer of a command."""

    object: Mapping[str, Any]
    text: str


def report_of(store: Store, run_id: str, dropped: Dropped | None = None) -> Report:
    """The report of a run; `run_id` as in `Store.run`. `dropped` is what a mix run has just left out."""
    run = store.run(run_id)
    if run.kind == RunKind.MIX:
        return _framed(store, run, *_mix(store, run, dropped))
    if run.kind in _PARTS:
        table, found = _PARTS[run.kind](store, run)
        if run.kind in _ASKING:
            counts = counts_of(store, run)
            said = answer_lines(counts, run.asked.match, run.asked.max_tokens)
            table, found = "\n".join([table, *said]), found | answer_object(counts)
        return _framed(store, run, table, found)
    report = run_report(store, run.run_id)
    return Report(run_object(report), "\n".join([run_table(report), *ending(store, run)]))


def details_of(store: Store, run_id: str) -> Report:
    """The report of a run with what made it: configuration, versions, attempts."""
    run = store.run(run_id)
    report, attempts = report_of(store, run.run_id), store.attempts(run.run_id)
    found = {**report.object, **details_object(run, attempts)}
    return Report(found, f"{report.text}\n\n{run_details(run, attempts)}")


def _split(store: Store, run: RunRecord) -> tuple[str, dict[str, Any]]:
    rows, baselines = store.knowledge(run.run_id), store.baselines(run.run_id)
    match = run.asked.match
    return knowledge_table(rows, baselines, match), knowledge_object(rows, baselines, match)


def _mix(store: Store, run: RunRecord, dropped: Dropped | None) -> tuple[str, dict[str, Any]]:
    rows, knowledge = store.mixtures(run.run_id), store.knowledge(settings_of(run, MixConfig).split_run)
    return mixture_table(rows, knowledge, dropped), mixture_object(rows, knowledge, dropped)


def _train(store: Store, run: RunRecord) -> tuple[str, dict[str, Any]]:
    epochs, checkpoints = store.epochs(run.run_id), store.checkpoints(run.run_id)
    return training_table(epochs, checkpoints), training_object(epochs, checkpoints)


def _sweep(store: Store, run: RunRecord) -> tuple[str, dict[str, Any]]:
    rows = store.sweep_accuracies(run.run_id)
    varied = varied_in(run)
    return sweep_table(rows, varied), sweep_object(rows, varied)


def _capture(store: Store, run: RunRecord) -> tuple[str, dict[str, Any]]:
    rows = store.captured(run.run_id)
    n, layers = len(store.asked(run.run_id)), settings_of(run, CaptureRun).layers
    return capture_table(rows, varied_in(run), n, layers), capture_object(rows, n, layers)


def _find(store: Store, run: RunRecord) -> tuple[str, dict[str, Any]]:
    summaries = store.trend_summaries(run.run_id)
    if not summaries:
        return "not ended; give the command again", {}
    conditions, fdr = store.trend_conditions(run.run_id), store.false_discoveries(run.run_id)
    latents = store.latents(run.run_id, selected=True)
    settings = settings_of(run, FindRun)
    beside: dict[str, Any] = {
        "captured": store.captured(settings.activations),
        "tested": significance(store.latents(run.run_id), settings),
    }
    table = trend_table(summaries, conditions, fdr, latents, settings, **beside)
    return table, trend_object(summaries, conditions, fdr, latents, settings, **beside)


def _steer(store: Store, run: RunRecord) -> tuple[str, dict[str, Any]]:
    found = steered(store, run)
    if found is None:
        return "not ended; give the command again to go on", {}
    return steer_table(found, settings_of(run, SteerRun)), steer_object(found)


_PARTS: Mapping[str, Callable[[Store, RunRecord], tuple[str, dict[str, Any]]]] = MappingProxyType(
    {
        RunKind.SPLIT: _split,
        RunKind.TRAIN: _train,
        RunKind.SWEEP: _sweep,
        RunKind.CAPTURE: _capture,
        RunKind.FIND: _find,
        RunKind.STEER: _steer,
    }
)
_ASKING = (RunKind.SPLIT, RunKind.SWEEP, RunKind.STEER)  # whose answers are stored
_UNITS: Mapping[str, str] = MappingProxyType(
    {
        RunKind.SPLIT: "answer",
        RunKind.MIX: "question",
        RunKind.TRAIN: "checkpoint",
        RunKind.SWEEP: "checkpoint",
        RunKind.CAPTURE: "checkpoint",
        RunKind.FIND: "latent",
        RunKind.STEER: "answer",
    }
)


def _framed(store: Store, run: RunRecord, table: str, found: Mapping[str, Any]) -> Report:
    """The table between what was done and how to go on."""
    summary = store.summary(run.run_id)
    lines = [_headline(run, summary), "", table, "", *ending(store, run)]
    head = {
        "run_id": run.run_id,
        "kind": run.kind,
        "status": summary.status,
        "n_done": summary.n_done,
        "n_planned": summary.n_planned,
        "wall_s": summary.wall_s,
        "generate_s": summary.generate_s,
        "answers_per_s": summary.requests_per_s,
    }
    return Report(head | dict(found), "\n".join(lines))


def _headline(run: RunRecord, summary: RunSummary) -> str:
    done = f"{summary.n_done} of {counted(summary.n_planned, _UNITS[run.kind])}"
    split = f" ({run.asked.split})" if run.asked.split else ""
    parts = [f"{run.ckpt} on {run.data}{split}: {done}"]
    if summary.requests_per_s:
        parts.append(f"{summary.requests_per_s:.1f} answers/s")
    if run.kind == RunKind.SWEEP and summary.wall_s:
        parts.append(
            f"{100 * (1 - summary.generate_s / summary.wall_s):.1f} % of the time outside generation"
        )
    return ", ".join(parts)
