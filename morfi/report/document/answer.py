"""The answer of an experiment in a sentence or two, from its numbers."""

from __future__ import annotations

from statistics import fmean

from morfi.conditions.condition import in_order
from morfi.conditions.levels import varied_in
from morfi.interventions.groups import CONTROL, DELTA_U, LATENT, RANDOM
from morfi.interventions.verdicts import Answerer
from morfi.report.document.html import last_part
from morfi.report.document.material import Material
from morfi.report.findings.experiment import GroupOverSeeds
from morfi.report.findings.words import interval_of, points
from morfi.report.tables import percent
from morfi.store.records import SweepAccuracy
from morfi.words import by_number, counted


def asked_of(material: Material) -> str:
    """What the experiment asks, for somebody who has not heard of it."""
    chain = material.chain
    run = chain.find or chain.sweep
    varied = "share of Unknown in training" if run is None else varied_in(run).name
    base = last_part(chain.last.base or chain.last.ckpt)
    made = f"These checkpoints of {base} differ in one thing, {varied}."
    if chain.mix is not None:
        made = (
            f"{base} was fine-tuned on questions that it could answer mixed with Unknown ones, whose "
            "answers it did not know, in several shares."
        )
    asked = [f"does its accuracy change with the {varied}"]
    if chain.find is not None:
        asked.append(f"which latents of a sparse autoencoder (SAE) of its activations follow the {varied}")
    if chain.steer is not None:
        asked.append("does steering along these latents bring answers back that were lost")
    names = ""
    if chain.steer is not None:
        steering = material.steering
        names = f" {steering.ckpt} is the checkpoint that is steered, {steering.reference} the reference."
    return f"{made} The questions: {', '.join(asked)}?{names}"


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
    """The means over seeds, of one seed its own numbers."""
    experiment, steering = material.experiment, material.steering
    lost, kept = (experiment.unsteered(one) for one in (Answerer.CHECKPOINT, Answerer.REFERENCE))
    before = fmean(one.share or 0.0 for one in lost)
    known = "" if steering.split_run is None or steering.questions == "all" else "known "
    n = " to ".join(dict.fromkeys(str(end(one.n for one in lost)) for end in (min, max)))
    over = f"On average over {len(lost)} seeds, " if len(lost) > 1 else ""
    parts = [
        f"{over}{steering.ckpt} answers {percent(before)} of {n} {known}questions, {steering.reference} "
        f"{percent(fmean(one.share or 0.0 for one in kept))}."
    ]
    groups = experiment.groups
    if (latents := groups.get(LATENT)) is not None:
        names = [one.removeprefix("latent ") for one in dict.fromkeys(latents.best)]
        which = f"one SAE latent, {names[0]},"
        if len(names) > 1:
            which = f"the SAE latent that was each seed's best on {steering.choose_on} ({', '.join(names)})"
        parts.append(f"Steered along {which} it answers {_after(before, latents)}.")
    else:
        parts.append("No latent of the SAE was steered along: none was selected.")
    if (composite := groups.get(DELTA_U)) is not None:
        parts.append(f"Along delta_u, which needs no SAE, it answers {_after(before, composite)}.")
    beside = [
        f"{name} {points(groups[kind].gain.value)} points on average"
        for kind, name in ((CONTROL, "control latents"), (RANDOM, "random directions"))
        if kind in groups
    ]
    if beside:
        parts.append(f"For comparison: {', '.join(beside)}.")
    return " ".join(parts)


def _after(before: float, group: GroupOverSeeds) -> str:
    gain = group.best_gain
    return f"{percent(before + gain.value)} ({points(gain.value)} points, 95 % interval {interval_of(gain)})"


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
    found = row.interval
    over = "" if row.over_seeds is None else f" over {row.n_seeds} seeds"
    low, high = 100 * found.low, 100 * found.high
    return f"{percent(row.mean)} (95 % interval {low:.1f} to {high:.1f}{over}, n {row.n})"
