"""The table of a steer run: one line per direction, with the baselines among them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from morfi.engine.operations import ADD, OPERATIONS
from morfi.interventions.config import SteerRun
from morfi.interventions.groups import DELTA_U, LATENT, Group
from morfi.interventions.outcome import Outcome, Recovery, Share, Steered
from morfi.interventions.verdicts import Answerer
from morfi.report.findings.words import GROUPS, between, points
from morfi.report.tables import aligned, percent
from morfi.words import counted

_TRENDS = {1: "rises", -1: "falls"}


def steer_table(found: Steered, config: SteerRun) -> str:
    """The text that `morfi steer` ends with."""
    choose_on, report_on = config.choose_on, config.report_on
    kinds = "all" if config.split_run is None else config.questions
    low = f" from {config.low:g}" if OPERATIONS[config.op].has_low else ""
    lines = [
        f"{config.ckpt} steered after layer {found.layer}, --op {config.op}{low}, positions "
        f"{config.positions}; alpha in median residual norms of {config.median_norm:.4g}",
        f"strengths chosen on {choose_on}, gains reported on {report_on}, {kinds} questions",
        "",
        *_unsteered(found, config),
    ]
    if config.layer_scan:
        lines += ["", *_scan(found)]
    shown = [one for one in found.outcomes if one.reported is not None]
    if shown:
        header = (
            "direction",
            "",
            "alpha",
            "strength",
            choose_on,
            "before",
            "after",
            "gain",
            "95 % interval",
            "McNemar p",
            f"R_K of {config.reference}",
            "of base",
        )
        body = [_line(one, config.op) for one in shown]
        lines += ["", *aligned([header, *body], numeric=range(2, len(header))), *_notes(shown[0], config)]
    lines += _groups(found, config)
    if config.halving:
        saved = 1 - found.n_answers / found.n_full_grid
        lines.append(
            f"successive halving: {counted(found.n_answers, 'answer')} instead of {found.n_full_grid}, "
            f"{100 * saved:.0f} % fewer"
        )
    return "\n".join(lines)


def steer_object(found: Steered | None) -> dict[str, Any]:
    """The object of `morfi steer --json`."""
    return {} if found is None else asdict(found)


def _unsteered(found: Steered, config: SteerRun) -> list[str]:
    names: dict[str, str] = {
        Answerer.BASE: "base model",
        Answerer.REFERENCE: config.reference,
        Answerer.CHECKPOINT: config.ckpt,
    }
    names |= {who: f"{names[who]} ({name} at {config.server})" for who, name in config.names.items()}
    splits = (config.choose_on, config.report_on)
    body = [
        (f"{names[served]}, unsteered", *(_share(by_split[split]) for split in splits))
        for served, by_split in found.accuracies.items()
    ]
    return aligned([("accuracy", *splits), *body], numeric=(1, 2))


def _scan(found: Steered) -> list[str]:
    """The gain of delta_u at each layer, and which layer gains most."""
    every = [
        one
        for one in found.outcomes
        if one.direction.kind in ("scan", "delta_u") and one.direction.operation == ADD.name
    ]
    every.sort(key=lambda one: one.direction.layer)
    body = [
        (
            str(one.direction.layer),
            f"{one.best.alpha:+g}",
            f"{one.best.strength:+.4g}",
            percent(one.best.accuracy),
            points(one.best.gain),
        )
        for one in every
    ]
    best = max(every, key=lambda one: one.best.accuracy)
    advice = f"use layer {best.direction.layer}"
    if best.best.gain <= 0:
        advice = "no layer gains anything; try other strengths"
    elif best.direction.layer != found.layer:
        advice += f", with an SAE that reads there: this one reads after layer {found.layer}"
    return [
        "delta_u after each captured layer, on the questions for choosing:",
        *aligned([("layer", "alpha", "strength", "accuracy", "gain"), *body], numeric=range(5)),
        advice,
    ]


def _line(one: Outcome, op: str) -> tuple[str, ...]:
    reported = one.reported
    assert reported is not None
    assert one.recovery is not None
    row = one.direction
    operation = OPERATIONS[row.operation]
    takes_amount = operation.amount is not None
    return (
        row.direction,
        _TRENDS.get(row.trend, "") if row.operation == op else operation.done,
        f"{one.best.alpha:+g}" if takes_amount else "",
        f"{one.best.strength:+.4g}" if takes_amount else "",
        percent(one.best.accuracy),
        percent(reported.accuracy_a),
        percent(reported.accuracy_b),
        points(reported.difference),
        between(reported.interval),
        f"{reported.p:.2g}",
        *(_recovery(one.recovery[name]) for name in (Answerer.REFERENCE, Answerer.BASE)),
    )


def _notes(one: Outcome, config: SteerRun) -> list[str]:
    """The meaning of R_K, with the base rates, which are those of every direction."""
    assert one.recovery is not None
    rates = [one.recovery[name].base_rate for name in (Answerer.REFERENCE, Answerer.BASE)]
    return [
        "",
        "R_K: of the answers that steering brought back (n), the share that the reference has right, with "
        "Wilson's interval.",
        f"Its base rate, of all {rates[0].n} that {config.ckpt} has wrong: {config.reference} "
        f"{_share(rates[0])}, the base model {_share(rates[1])}.",
    ]


def group_name(kind: str, config: SteerRun) -> str:
    """The words for a group of directions."""
    if kind == LATENT and config.ids is not None:
        return "the latents of --ids"
    return GROUPS[kind]


def _groups(found: Steered, config: SteerRun) -> list[str]:
    """The groups, a line for each, and what the best latent has over delta_u."""
    if not found.groups:
        return []
    on = config.choose_on, config.report_on
    header = ("", "n", "mean gain", "95 % over directions", f"best on {on[0]}", "alpha", *on)
    body = [_group(one, config) for one in found.groups]
    table = aligned([(*header, "95 % interval", "latents' mean beyond"), *body], numeric=(1, 2, 5, 6, 7))
    lines = ["", "mean gain by how directions were chosen, and the one that is best by what was chosen on:"]
    lines += table + _shared(found, config)
    delta_u = next((one for one in found.groups if one.kind == DELTA_U), None)
    if delta_u is not None and (ahead := delta_u.best_margin) is not None:
        best = next(one for one in found.groups if one.kind == LATENT)
        lines.append(
            f"{best.best}, the best by what was chosen on, against delta_u: "
            f"{points(ahead.difference)} points ({between(ahead.interval)}), McNemar p {ahead.p:.2g}"
        )
    return lines


def _group(group: Group, config: SteerRun) -> tuple[str, ...]:
    spread = "" if group.interval is None else between(group.interval)
    margin = group.margin
    return (
        group_name(group.kind, config),
        str(group.n),
        points(group.gain),
        spread,
        group.best,
        f"{group.best_alpha:+g}",
        points(group.best_chosen),
        points(group.best_gain.difference),
        between(group.best_gain.interval),
        "" if margin is None else f"{points(margin.difference)} ({between(margin.interval)})",
    )


def _shared(found: Steered, config: SteerRun) -> list[str]:
    """How many of the latents of rival rules were selected by the trend as well."""
    own = {one.direction.latent for one in found.outcomes if one.direction.kind == LATENT}
    counts = [(rule, len(own & set(picks)), len(picks)) for rule, picks in config.picks.items()]
    return [
        f"{GROUPS[rule]}: {n} of {n_all} are among the latents steered anyway; such a latent counts in both"
        if n_all
        else f"{GROUPS[rule]}: none, for it is not known which of the questions the base model knew"
        for rule, n, n_all in counts
        if n or (own and not n_all)
    ]


def _recovery(found: Recovery) -> str:
    recovered = found.recovered
    if recovered.share is None:
        return "- (n 0)"
    low, high = recovered.interval.low, recovered.interval.high
    return f"{percent(recovered.share)} ({100 * low:.0f} to {100 * high:.0f}, n {recovered.n})"


def _share(share: Share) -> str:
    return f"{percent(share.share)} ({share.n_right} of {share.n})"
