"""The picture of a run, from the store: of `morfi sweep`, `find` and `steer`."""

from __future__ import annotations

from pathlib import Path

from morfi.conditions.levels import varied_in
from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.interventions.outcome import steered
from morfi.latents.find import FindRun
from morfi.report.steering_figure import steer_figure
from morfi.report.sweep_figure import sweep_figure
from morfi.report.trend_figure import trend_figure
from morfi.runs.settings import settings_of
from morfi.store import Store
from morfi.store.records import RunKind, RunRecord


def draw(store: Store, run_id: str, out: Path) -> tuple[Path, Path]:
    """Writes the picture of a run to `out` with the endings .png and .svg, and returns the two paths.

    Raises InputError for a run of which there is none, or where there is no place to write it.
    """
    run = store.run(run_id)
    match run.kind:
        case RunKind.SWEEP:
            return _swept(store, run, out)
        case RunKind.FIND:
            return _found(store, run, out)
        case RunKind.STEER:
            return _steered(store, run, out)
    raise InputError(f"{run.run_id} is a run of `morfi {run.kind}`, of which there is no picture")


def _swept(store: Store, run: RunRecord, out: Path) -> tuple[Path, Path]:
    rows = store.sweep_accuracies(run.run_id)
    return sweep_figure(rows, varied_in(run), f"{run.base} on {run.data}", out)


def _found(store: Store, run: RunRecord, out: Path) -> tuple[Path, Path]:
    latents = store.latents(run.run_id, selected=True).to_pylist()
    title = f"{run.base} on {run.data}, layer {settings_of(run, FindRun).layer}"
    return trend_figure(store.trend_conditions(run.run_id), latents, varied_in(run), title, out)


def _steered(store: Store, run: RunRecord, out: Path) -> tuple[Path, Path]:
    found = steered(store, run)
    assert found is not None
    settings = settings_of(run, SteerRun)
    title = f"{settings.ckpt} of {run.base}, layer {found.layer}"
    return steer_figure(found, settings, title, out)
