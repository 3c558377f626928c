"""Sections on what steering brings back: along each direction, and by relation, over all seeds."""

from __future__ import annotations

from morfi.questions.relations import named
from morfi.report.document.drawings import drawing
from morfi.report.document.figures import gains_figure
from morfi.report.document.html import Cell, Section, table
from morfi.report.document.material import Material
from morfi.report.findings.directions import Along
from morfi.report.findings.estimate import SEEDS
from morfi.report.findings.words import BEST, USUAL, between, estimated, interval_of, points, share, usual
from morfi.report.tables import percent


def gains(material: Material) -> Section | None:
    """What steering along each direction does, dev beside test, with the baselines: means over seeds."""
    run, experiment = material.chain.steer, material.experiment
    if run is None or material.steered is None:
        return None
    steering, n_seeds = material.steering, len(experiment.by_seed)
    on = [f"gain on {split}" for split in (steering.choose_on, steering.report_on)]
    p = ("McNemar p",) if n_seeds == 1 else ()
    over = "" if n_seeds == 1 else " over seeds"
    last = (f"95 % interval{over}", *p, f"R_K of {steering.reference}", "brought back")
    caption = (
        f"Gains in points. Strengths and order are chosen on {steering.choose_on}; what counts is the gain "
        f"on {steering.report_on}. R_K: of the answers brought back, the share that {steering.reference} "
        "has right."
    )
    if n_seeds > 1:
        caption = (
            f"Means over {n_seeds} seeds, each at its own best alpha; answers brought back are those of all "
            f"seeds together. {caption}"
        )
    header = ("direction", "kind", "alpha", *on, *last)
    rows = [_row(one, several=n_seeds > 1) for one in experiment.directions]
    body = drawing(gains_figure(material, run)) + table(header, rows, caption=caption, sortable=True)
    return Section("gains", "What steering brings back", body)


def _row(one: Along, *, several: bool) -> list[str | Cell]:
    """The line of a direction; `several` where the headings are those of several seeds."""
    gain = one.gain
    as_headed = gain.interval if several == (gain.over == SEEDS) else None
    return [
        one.direction,
        one.kind,
        Cell(_alphas(one), one.alphas[0]),
        Cell(points(one.chosen), one.chosen),
        Cell(points(gain.value), gain.value),
        interval_of(gain) if as_headed is None else between(as_headed),
        *([] if several or one.p is None else [Cell(f"{one.p:.2g}", one.p)]),
        Cell(percent(one.recovered.share) or "-", one.recovered.share or 0.0),
        Cell(str(one.recovered.n), one.recovered.n),
    ]


def _alphas(one: Along) -> str:
    """The best strengths, by seed where they differ."""
    shown = [f"{alpha:+g}" for alpha in one.alphas]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def gained(one: Along | None) -> str:
    """What steering along a direction did, in words."""
    return "not along this one" if one is None else f"{estimated(one.gain)} points at alpha {_alphas(one)}"


def recovered(material: Material) -> Section | None:
    """Gain and knowledge recovery by relation, of the best latent and of delta_u, all seeds together."""
    if material.steered is None or not (regained := material.experiment.regained):
        return None
    rows = [
        (
            BEST[one.kind],
            named(one.relation or "all"),
            Cell(str(one.n), one.n),
            Cell(points(one.gain), one.gain),
            share(one.recovery.recovered),
            share(one.recovery.base_rate),
            usual(one.usual),
        )
        for one in regained
    ]
    steering, n_seeds = material.steering, len(material.experiment.by_seed)
    seeds = f"Answers of all {n_seeds} seeds together, o" if n_seeds > 1 else "O"
    caption = (
        f"{seeds}n {steering.report_on}; the base rate is that of {steering.reference} on all that was wrong "
        f"before. {USUAL}"
    )
    header = ("along", "relation", "answers", "gain", "R_K", "base rate", "most frequent answer")
    return Section("relations", "By relation", table(header, rows, caption=caption))
