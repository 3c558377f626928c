"""The pictures of a report, each with its caption and with what it shows in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morfi.conditions.levels import varied_in
from morfi.errors import InputError
from morfi.latents.find import FindRun
from morfi.report.document.drawings import Figure
from morfi.report.document.material import Material
from morfi.report.fdr_figure import expected_of, fdr_figure, few_of
from morfi.report.pictures import found, steered_along, swept
from morfi.report.sweep import over_of
from morfi.report.sweep import settings_of as epochs_of
from morfi.report.tables import percent
from morfi.report.trend_figure import drawn
from morfi.runs.settings import settings_of
from morfi.words import counted, together

if TYPE_CHECKING:
    from morfi.store.records import RunRecord, TrendSummaryRow

_LISTED = 4  # directions in the words of a picture


def figures_of(material: Material) -> list[Figure]:
    """All pictures of the report, in its order."""
    chain, made = material.chain, list[Figure | None]()
    if chain.sweep is not None:
        made.append(accuracy_figure(material, chain.sweep))
    if chain.find is not None and (summaries := material.store.trend_summaries(chain.find.run_id)):
        made.append(trends_figure(material, chain.find))
        made += [chance_figure(material, chain.find, one) for one in summaries]
    if material.steered is not None and chain.steer is not None:
        made.append(gains_figure(material, chain.steer))
    return [one for one in made if one is not None]


def accuracy_figure(material: Material, run: RunRecord) -> Figure | None:
    """Accuracy against the level; None where no group of questions has a panel."""
    varied, rows = varied_in(run), material.store.sweep_accuracies(run.run_id)
    try:
        picture = swept(material.store, run)
    except InputError:
        return None
    said = []
    for group in dict.fromkeys(row.questions for row in rows):
        for setting in epochs_of([row for row in rows if row.questions == group]):
            own = [row for row in rows if (row.questions, row.epoch_setting) == (group, setting)]
            low, high = (end(own, key=lambda row: row.level or 0) for end in (min, max))
            said.append(
                f"{group}, epochs {setting}: {percent(low.mean)} at {varied.shown(low.level or 0)}, "
                f"{percent(high.mean)} at {varied.shown(high.level or 0)}"
            )
    caption = f"Closed-book accuracy against {varied.name}; bars are 95 % intervals over {over_of(rows)}"
    return Figure(picture, "sweep", f"{caption}.", f"{caption}. {'; '.join(said)}.")


def trends_figure(material: Material, run: RunRecord) -> Figure | None:
    """Means of the selected latents along the axis, with bands where the captures are there."""
    rows = drawn(material.store.latents(run.run_id, selected=True).to_pylist())
    if not rows:
        return None
    picture = found(material.store, run, material.activity)
    caption = "Mean activation of the selected latents as a share of its largest"
    if material.activity:
        caption += f"; bands hold 95 % of {material.n_resamples} resamples of the questions"
    else:
        caption += "; no bands, for the captures or the SAE are no longer where they were"
    said = []
    for direction, name in ((1, "rise"), (-1, "fall")):
        latents = [row["latent"] for row in rows if row["direction"] == direction]
        said.append(f"{together(latents)} {name}" if latents else f"none {name}")
    return Figure(picture, "trends", f"{caption}.", f"{caption}. Of the latents drawn, {'; '.join(said)}.")


def chance_figure(material: Material, run: RunRecord, summary: TrendSummaryRow) -> Figure | None:
    """Latents found against those expected by chance, by |S|; None where no latent has a trend."""
    rates = [row for row in material.store.false_discoveries(run.run_id) if row.axis == summary.axis]
    if not rates:
        return None
    picture = fdr_figure(
        rates, f"{run.base} on {run.data}, along {summary.axis}", smallest_s=summary.smallest_s
    )
    found = [
        f"|S| >= {row.s}: {row.n_found} found, {expected_of(row):.1f} expected by chance"
        for row in few_of(rates, summary.smallest_s)
    ]
    caption = "Latents with so strong a trend, and how many the median of shuffled levels gives (log scale)"
    threshold = "no |S| was selected from"
    if summary.smallest_s is not None:
        threshold = f"selected from |S| >= {summary.smallest_s}"
    elif settings_of(run, FindRun).method != "fdr":
        threshold = "the rule of this run does not use it"
    said = f"{caption}. {'; '.join(found)}; {threshold}."
    return Figure(picture, f"chance-{summary.axis}", f"{caption}; {threshold}.", said)


def gains_figure(material: Material, run: RunRecord) -> Figure | None:
    """Gain against strength; None where nothing was steered along."""
    assert material.steered is not None
    whose = f", {material.one_seed}" if material.one_seed else ""
    try:
        picture = steered_along(run, material.steered, whose)
    except InputError:
        return None
    split = material.steering.choose_on
    said = [
        f"{one.direction.direction} {100 * one.best.gain:+.1f} points at alpha {one.best.alpha:+g}"
        for kind in ("latent", "delta_u", "control", "random")
        for one in material.of_kind(kind)[:_LISTED]
    ]
    caption = f"Gain on {split} against strength{whose}; control latents and random directions are grey"
    best = f"The best of each: {'; '.join(said)}" if said else counted(0, "direction")
    return Figure(picture, "steering", f"{caption}.", f"{caption}. {best}.")
