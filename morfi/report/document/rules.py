"""Sections on ways of choosing directions, rivals of the trend among them, and on the seeds."""

from __future__ import annotations

from morfi.report.document.html import Cell, Section, folded, items, paragraph, table
from morfi.report.document.material import Material
from morfi.report.findings import RULE, claims_of
from morfi.report.findings.published import PAPER
from morfi.report.findings.words import GROUPS, column, estimated, points
from morfi.store.records import SweepAccuracy
from morfi.words import counted


def claims(material: Material) -> Section | None:
    """What the experiment says to the claims of the paper."""
    if material.steered is None:
        return None
    found = claims_of(material.experiment)
    said = [f"({one.letter}) {one.text} It {one.verdict}." for one in found]
    parts = [(one.letter, part) for one in found for part in one.parts]
    numbers = column([part.found for _, part in parts])
    rows = [
        (f"({letter}) {part.says}", part.missing if part.found is None else cell, part.verdict)
        for (letter, part), cell in zip(parts, numbers.cells, strict=True)
    ]
    body = paragraph(f"The claims are those of {PAPER}.") + items(said)
    body += table(("number", numbers.headed("points"), "by itself it"), rows, caption=RULE)
    return Section("claims", "What the paper claims, and what this experiment says to it", body)


def rules(material: Material) -> Section | None:
    """Mean gains, and those of the best by what was chosen on, by how directions were chosen."""
    if material.steered is None or not (groups := material.experiment.groups):
        return None
    choose_on, report_on = material.steering.choose_on, material.steering.report_on
    own = list(groups.values())
    gain = column([None if one.n == 1 else one.gain for one in own])
    best, ahead = (column([getattr(one, name) for one in own]) for name in ("best_gain", "margin"))
    rows = [
        (
            GROUPS[one.kind],
            Cell(str(one.n), one.n),
            Cell(gain.cells[row] if one.n > 1 else points(one.gain.value), one.gain.value),
            ", ".join(dict.fromkeys(one.best)),
            Cell(points(one.chosen), one.chosen),
            Cell(best.cells[row], one.best_gain.value),
            "-" if one.margin is None else Cell(ahead.cells[row], one.margin.value),
        )
        for row, one in enumerate(own)
    ]
    header = ("", "n", gain.headed("mean gain"), f"best on {choose_on}", f"on {choose_on}")
    n_seeds = len(material.experiment.by_seed)
    lead = f"Means over {n_seeds} seeds, gains" if n_seeds > 1 else "Gains"
    caption = (
        f"{lead} in points. The last column is what the latents with a trend have beyond the row, on "
        "average; of falling latents, what the rising ones have beyond them."
    )
    body = table(
        (*header, best.headed(f"on {report_on}"), ahead.headed("ahead of it")),
        rows,
        caption=caption,
        sortable=True,
    )
    return Section("rules", "By how directions were chosen", body)


def seeds(material: Material) -> Section | None:
    """Accuracy and gains of every seed, with intervals over seeds, where there are several."""
    body, swept = "", material.experiment.accuracies
    several = [row for row in swept if row.n_seeds > 1 and row.level is not None]
    if several:
        n = max(row.n_seeds for row in several)
        rows = [_accuracy_line(row, n) for row in several]
        header = ("questions", "level", "epochs", *(f"training {number + 1}" for number in range(n)))
        accuracies = table(
            (*header, "mean", "95 % over seeds"), rows, caption="Accuracy in percent", sortable=True
        )
        body += folded(f"Accuracy of every training: {counted(len(rows), 'row')}", accuracies)
    by_seed = material.experiment.by_seed
    if len(by_seed) > 1:
        gains = [
            (GROUPS[one.kind], what, *map(points, found.values), estimated(found))
            for one in material.experiment.groups.values()
            for what, found in (("mean", one.gain), ("best", one.best_gain))
            if len(found.values) == len(by_seed)
        ]
        header = ("", "gain", *(f"seed {seed}" for seed in by_seed), "mean")
        body += table(header, gains, caption=f"Gains on {material.steering.report_on} in points, by seed")
    if not body:
        return None
    said = "Every training of a level was begun with another seed; the intervals here are over trainings."
    return Section("seeds", "Over trainings", paragraph(said) + body)


def _accuracy_line(row: SweepAccuracy, n: int) -> list[str | Cell]:
    """A checkpoint's accuracy by seed, in `n` columns, and their mean with its interval."""
    over = row.over_seeds
    spread = "-"
    if over is not None:
        spread = f"{100 * max(0.0, over.low):.1f} to {100 * min(1.0, over.high):.1f}"
    by_seed = [f"{100 * one:.1f}" for one in row.by_seed] + [""] * (n - row.n_seeds)
    level = Cell(str(row.level), row.level or 0)
    return [row.questions, level, row.epoch_setting or "", *by_seed, f"{100 * row.mean:.1f}", spread]
