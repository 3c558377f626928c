"""The answer of an experiment in a sentence or two, from its numbers."""

from __future__ import annotations

from morfi.conditions.condition import in_order
from morfi.conditions.levels import varied_in
from morfi.interventions.outcome import Outcome
from morfi.interventions.verdicts import Answerer
from morfi.report.document.material import Material
from morfi.report.tables import percent
from morfi.store.records import SweepAccuracy
from morfi.words import by_number, counted


def answer_of(material: Material) -> str:
    """What the last of the runs has shown; what is not there yet is not spoken of."""
    chain = material.chain
    if material.steered is not None:
        return _steered(material)
    if chain.steer is not None:
        return "Steering has not ended; run its command again."
    if chain.find is not None and material.store.trend_summaries(chain.find.run_id):
        n = len(material.store.latents(chain.find.run_id, selected=True))
        follow = f"{by_number(n, 'follows', 'follow')} {varied_in(chain.find).name}"
        return f"{counted(n, 'latent')} of the SAE {follow}; nothing was steered yet."
    if chain.sweep is not None:
        return _swept(material)
    return "No checkpoint of the experiment was asked anything yet."


def _steered(material: Material) -> str:
    assert material.steered is not None
    steering = material.steering
    shares = material.steered.accuracies
    lost = shares[Answerer.CHECKPOINT][steering.report_on]
    kept = shares[Answerer.REFERENCE][steering.report_on]
    known = "" if steering.split_run is None or steering.questions == "all" else "known "
    said = (
        f"{steering.ckpt} answers {percent(lost.share)} of {lost.n} {known}questions, {steering.reference} "
        f"{percent(kept.share)}."
    )
    latents, composite = material.of_kind("latent"), material.of_kind("delta_u")
    parts = [said]
    if latents:
        parts.append(
            f"Steered along one SAE latent, {latents[0].direction.latent}, it answers {_after(latents[0])}."
        )
    else:
        parts.append("No latent of the SAE was steered along: none was selected.")
    if composite:
        parts.append(f"Along delta_u, which needs no SAE, it answers {_after(composite[0])}.")
    groups = {group.kind: group for group in material.steered.groups}
    beside = [
        f"{name} {100 * groups[kind].gain:+.1f} points on average"
        for kind, name in (("control", "control latents"), ("random", "random directions"))
        if kind in groups
    ]
    if beside:
        parts.append(f"For comparison: {', '.join(beside)}.")
    return " ".join(parts)


def _after(one: Outcome) -> str:
    assert one.reported is not None
    low, high = one.reported.interval.low, one.reported.interval.high
    return (
        f"{percent(one.reported.accuracy_b)} ({100 * one.reported.difference:+.1f} points, 95 % interval "
        f"{100 * low:+.1f} to {100 * high:+.1f})"
    )


def _swept(material: Material) -> str:
    assert material.chain.sweep is not None
    rows = [
        row for row in material.store.sweep_accuracies(material.chain.sweep.run_id) if row.level is not None
    ]
    groups = [row.questions for row in rows]
    group = "test Known" if "test Known" in groups else groups[0]
    settings = in_order(row.epoch_setting for row in rows if row.epoch_setting is not None)
    setting = ([one for one in settings if one.isdecimal()] or settings)[-1]
    own = [row for row in rows if (row.questions, row.epoch_setting) == (group, setting)]
    low, high = min(own, key=lambda row: row.level or 0), max(own, key=lambda row: row.level or 0)
    varied = varied_in(material.chain.sweep)
    return (
        f"Epochs {setting}: accuracy on {group} questions is {_interval(low)} where {varied.name} is "
        f"{varied.shown(low.level or 0)}, and {_interval(high)} where it is {varied.shown(high.level or 0)}."
    )


def _interval(row: SweepAccuracy) -> str:
    low, high = 100 * row.ci_low, 100 * row.ci_high
    return f"{percent(row.accuracy)} (95 % interval {low:.1f} to {high:.1f}, n {row.n})"
