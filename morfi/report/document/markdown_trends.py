"""The latents of an experiment in Markdown: along the levels, and along the epochs where that was asked."""

from __future__ import annotations

from collections.abc import Sequence

from morfi.conditions.levels import NOT_INDEPENDENT
from morfi.latents.activations import EPOCHS, LEVEL
from morfi.latents.find import OF_LEVELS, FindRun
from morfi.latents.significance import significance
from morfi.report.findings.experiment import Experiment
from morfi.report.findings.words import column
from morfi.report.tables import markdown_table
from morfi.report.trends import SHOWN, significance_line
from morfi.runs.settings import settings_of
from morfi.store.records import EVERY, RunKind, RunRecord
from morfi.words import counted

_ALONG = {LEVEL: "levels", EPOCHS: "epochs"}
_DIRECTIONS = {1: "rises", -1: "falls"}


def trends(one: Experiment) -> list[str]:
    """What was selected, what chance would give, the first latents, and what the epochs give."""
    run = one.chain.find
    if run is None or not one.store.trend_summaries(run.run_id):
        return []
    lines = [*_found(one, run), ""]
    selected = one.store.latents(run.run_id, selected=True).to_pylist()
    shown, along = selected[:SHOWN], one.latent_gains
    gains = column([along.get(row["latent"]) for row in shown])
    rows = [
        (
            str(row["latent"]),
            _DIRECTIONS.get(row["direction"], "-"),
            f"{row['s']:+d}",
            f"{row['rho']:+.2f}",
            f"{row['p_exact']:.2g}",
            f"{row['score']:.2f}",
            f"{100 * row['firing']:.1f} %",
            gain,
        )
        for row, gain in zip(shown, gains.cells, strict=True)
    ]
    if rows:
        header = ("latent", "direction", "S", "rho", "p", "score", "fires on")
        lines += markdown_table((*header, gains.headed("gain along it")), rows)
    if len(selected) > SHOWN:
        lines += ["", f"And {len(selected) - SHOWN} more."]
    return [*lines, "", *_along_epochs(one, run)]


def _found(one: Experiment, run: RunRecord) -> list[str]:
    """A paragraph on a find run: conditions, how many latents, chance, corrections."""
    settings = settings_of(run, FindRun)
    selected = one.store.latents(run.run_id, selected=True)["direction"].to_pylist()
    conditions = one.store.trend_conditions(run.run_id)
    said = []
    for summary in one.store.trend_summaries(run.run_id):
        own = [row for row in conditions if row.axis == summary.axis]
        n_places, n_seeds = len({row.place for row in own}), len({row.seed for row in own})
        explained = [row.explained_variance for row in own]
        said.append(
            f"Along the {_ALONG[summary.axis]}: {n_places} of them, {counted(n_seeds, 'seed')}, "
            f"{counted(summary.n_questions, 'question')}; the SAE explains {min(explained):.3f} to "
            f"{max(explained):.3f} of the variance. {summary.n_firing} latents fire; chance would give "
            f"{summary.expected_false:.2g} perfect trends."
        )
    first = [row for row in conditions if row.axis == conditions[0].axis]
    tested = significance_line(significance(one.store.latents(run.run_id), settings), first)
    said += [
        f"{counted(len(selected), 'latent')} selected by {settings.method}: {selected.count(1)} rising, "
        f"{selected.count(-1)} falling.",
        f"{tested}.",
    ]
    if settings.rho_of == OF_LEVELS:
        said.append("rho ranks the levels, each by the mean of its trainings.")
    return [" ".join(said)]


def _along_epochs(one: Experiment, run: RunRecord) -> list[str]:
    """What the trends along the epochs give, of the newest find run of the same capture that asked."""
    if settings_of(run, FindRun).along != LEVEL:
        return []
    for found in _others(one, run):
        if settings_of(found, FindRun).along != LEVEL:
            own = set(_latents(one, run)) & set(_latents(one, found))
            return [
                f"**Along the epochs** (`{found.run_id}`). {_found(one, found)[0]} {len(own)} of them are "
                f"among the latents above, in the same direction. These are {NOT_INDEPENDENT}."
            ]
    if len([name for name in one.epochs if name.isdecimal()]) > 2:
        return ["Trends along the epochs were not asked for: `morfi find --along epochs` compares them."]
    return ["There are no trends along the epochs: fewer than three numbers of them were trained."]


def _others(one: Experiment, run: RunRecord) -> Sequence[RunRecord]:
    """The whole find runs of the same capture and SAE, the newest first."""
    own = settings_of(run, FindRun)
    every = [one.store.run(found.run_id) for found in one.store.runs(EVERY, (RunKind.FIND,))]
    return [
        other
        for other in every
        if (settings_of(other, FindRun).activations, settings_of(other, FindRun).sae_sha256)
        == (own.activations, own.sae_sha256)
        and one.store.trend_summaries(other.run_id)
    ]


def _latents(one: Experiment, run: RunRecord) -> list[tuple[int, int]]:
    rows = one.store.latents(run.run_id, selected=True).select(["latent", "direction"]).to_pylist()
    return [(row["latent"], row["direction"]) for row in rows]
