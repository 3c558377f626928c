"""The picture of a run, from the store: of `morfi sweep`, `find` and `steer`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from morfi.conditions.levels import varied_in
from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.interventions.outcome import Steered, steered
from morfi.latents.activity import Activity, activity_of, found_here
from morfi.latents.find import FindRun
from morfi.report.picture import Picture
from morfi.report.steering_figure import steer_figure
from morfi.report.sweep_figure import sweep_figure
from morfi.report.trend_figure import drawn, trend_figure
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
            return swept(store, run).write(out)
        case RunKind.FIND:
            latents = drawn(store.latents(run.run_id, selected=True).to_pylist())
            here = found_here(store, run.run_id) if latents else None
            activity = activity_of(store, here, [row["latent"] for row in latents]) if here else {}
            return found(store, run, activity).write(out)
        case RunKind.STEER:
            outcome = steered(store, run)
            assert outcome is not None
            return steered_along(run, outcome).write(out)
    raise InputError(f"{run.run_id} is a run of `morfi {run.kind}`, of which there is no picture")


def swept(store: Store, run: RunRecord) -> Picture:
    """The picture of a sweep: accuracy against the level."""
    return sweep_figure(store.sweep_accuracies(run.run_id), varied_in(run), f"{run.base} on {run.data}")


def found(store: Store, run: RunRecord, activity: Mapping[str, Mapping[int, Activity]]) -> Picture:
    """The picture of a find run: means of the selected latents, with the bands of `activity`."""
    latents = store.latents(run.run_id, selected=True).to_pylist()
    title = f"{run.base} on {run.data}, layer {settings_of(run, FindRun).layer}"
    return trend_figure(store.trend_conditions(run.run_id), latents, varied_in(run), title, activity)


def steered_along(run: RunRecord, outcome: Steered, note: str = "") -> Picture:
    """The picture of a steer run: gain against strength; `note` stands at the end of its title."""
    settings = settings_of(run, SteerRun)
    title = f"{settings.ckpt} of {run.base}, layer {outcome.layer}{note}"
    return steer_figure(outcome, settings, title)
