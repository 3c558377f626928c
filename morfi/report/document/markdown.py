"""The page of an experiment in Markdown: what it says to each claim of the paper, then its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from morfi.conditions.levels import varied_in
from morfi.questions.relations import named
from morfi.report.document.answer import answer_of, asked_of
from morfi.report.document.markdown_trends import trends
from morfi.report.document.material import Material
from morfi.report.document.sections import limit_lines, setting_rows
from morfi.report.findings import RULE, Experiment, Part, claims_of
from morfi.report.findings.published import PAPER, PUBLISHED
from morfi.report.findings.words import BEST, GROUPS, USUAL, column, estimated, points, share, usual
from morfi.report.sweep import groups_of, levels_of, over_of, settings_of
from morfi.report.tables import markdown_table, percent
from morfi.store.records import SweepAccuracy

Lines = list[str]


def page(experiments: Sequence[Experiment]) -> str:
    """The page: of several experiments first a table of them all, then each."""
    if len(experiments) == 1:
        lines = [f"# {_title(experiments[0])}", *_experiment(experiments[0], "##", ["", RULE])]
    else:
        lines = ["# Experiments on several models", "", RULE, "", *_side_by_side(experiments)]
        for one in experiments:
            lines += ["", f"## {_title(one)}", *_experiment(one, "###", [])]
    return "\n".join(lines) + "\n"


def _title(one: Experiment) -> str:
    last = one.chain.last
    return f"{Path(last.base or last.ckpt).name} on {Path(last.data).name}"


def _experiment(one: Experiment, heading: str, rule: Lines) -> Lines:
    material = Material(one)
    sections = {
        "The claims": _claims(one, rule),
        "What was done": markdown_table(("", ""), setting_rows(material)),
        "Accuracy": _accuracy(one),
        "Latents that follow the level": trends(one),
        "Gains by how directions were chosen": _groups(one),
        "Recovery by relation": _relations(one),
        "Beside the published figures": _published([one]),
        "What was not controlled for": [f"- {line}" for line in limit_lines(material)],
        "Runs": _runs(one),
    }
    lines: Lines = ["", f"**What was asked.** {asked_of(material)}"]
    lines += ["", f"**What came out.** {answer_of(material)}"]
    for title, body in sections.items():
        if body:
            lines += ["", f"{heading} {title}", "", *body]
    return lines


def _claims(one: Experiment, rule: Lines) -> Lines:
    claims = claims_of(one)
    numbers = column([part.found for claim in claims for part in claim.parts])
    cells = iter(numbers.cells)
    rows = [
        (f"({claim.letter})" if number == 0 else "", part.says, _number(part, next(cells)), part.verdict)
        for claim in claims
        for number, part in enumerate(claim.parts)
    ]
    said = [f"- ({claim.letter}) {claim.text} **It {claim.verdict}.**" for claim in claims]
    header = ("", "number", numbers.headed("points"), "by itself it")
    return [*said, *rule, "", *markdown_table(header, rows)]


def _number(part: Part, cell: str) -> str:
    return part.missing if part.found is None else cell


def _accuracy(one: Experiment) -> Lines:
    rows = one.accuracies
    if not rows or one.chain.sweep is None:
        return []
    varied, lines = varied_in(one.chain.sweep), Lines()
    levels = levels_of(rows)
    for group in groups_of(rows):
        inside = [row for row in rows if row.questions == group]
        cells = {(row.epoch_setting, row.level): row for row in inside}
        body = []
        for name in settings_of(inside):
            own = [cells.get((name, level)) for level in levels]
            body.append((name, *("-" if cell is None else _cell(cell) for cell in own)))
        base = cells.pop((None, None), None)
        asked = [row.n for row in cells.values()] or [0]
        n = " to ".join(dict.fromkeys(str(end(asked)) for end in (min, max)))
        lines += ["", f"{group}, in percent, with 95 % intervals over {over_of(inside)} (n {n})"]
        lines[-1] += ":" if base is None else f"; base model {_cell(base)}, over {base.n} answers:"
        lines += ["", *markdown_table(("epochs", *(varied.shown(level) for level in levels)), body)]
    return lines[1:]


def _cell(row: SweepAccuracy) -> str:
    found = row.interval
    return f"{100 * row.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _groups(one: Experiment) -> Lines:
    if not one.groups or one.steering is None:
        return []
    on = one.steering.choose_on, one.steering.report_on
    groups = list(one.groups.values())
    gain = column([None if group.n == 1 else group.gain for group in groups])
    best, ahead = (column([getattr(group, name) for group in groups]) for name in ("best_gain", "margin"))
    rows = [
        (
            GROUPS[group.kind],
            str(group.n),
            points(group.gain.value) if group.n == 1 else gain.cells[row],
            ", ".join(dict.fromkeys(group.best)),
            points(group.chosen),
            best.cells[row],
            ahead.cells[row],
        )
        for row, group in enumerate(groups)
    ]
    header = ("chosen as", "n", gain.headed("mean gain"), f"best on {on[0]}", f"its gain on {on[0]}")
    seeds = f"Means over {len(one.by_seed)} seeds. " if len(one.by_seed) > 1 else ""
    return [
        f"{seeds}Gains in points of accuracy on {on[1]}; strengths, and what is best, were chosen on "
        f"{on[0]}. The last column is what the latents with a trend have beyond the row, on average; of "
        "falling latents, what the rising ones have beyond them.",
        "",
        *markdown_table((*header, best.headed(f"on {on[1]}"), ahead.headed("ahead of it")), rows),
    ]


def _relations(one: Experiment) -> Lines:
    if one.steering is None:
        return []
    header = ("along", "relation", "answers", "gain", "R_K", "base rate", "most frequent answer")
    rows = [
        (
            BEST[row.kind],
            named(row.relation or "all"),
            str(row.n),
            points(row.gain),
            share(row.recovery.recovered),
            share(row.recovery.base_rate),
            usual(row.usual),
        )
        for row in one.regained
    ]
    return [
        f"R_K is the share of the answers brought back that {one.steering.reference} has right; the base "
        f"rate is the same of all answers that were wrong before. Answers of all seeds together. {USUAL}",
        "",
        *markdown_table(header, rows),
    ]


def _side_by_side(experiments: Sequence[Experiment]) -> Lines:
    """The claims of every experiment, then the figures beside those of the paper."""
    claims = [claims_of(one) for one in experiments]
    header = ("", *(_title(one) for one in experiments))
    rows = [
        (f"({own[0].letter}) {own[0].text}", *(one.verdict for one in own))
        for own in zip(*claims, strict=True)
    ]
    return [*markdown_table(header, rows), "", *_published(experiments)]


def _published(experiments: Sequence[Experiment]) -> Lines:
    rows = [(one.model, one.sae, one.gain, one.recovery) for one in PUBLISHED]
    for one in experiments:
        latent = one.groups.get("latent")
        if latent is None:
            continue
        best = [
            f"{estimated(latent.best_gain)}, the best on {one.steering.choose_on if one.steering else ''}"
        ]
        for kind in ("down", "up"):
            if (group := one.groups.get(kind)) is not None:
                best.append(f"{kind} {points(group.best_gain.value)}")
        recovered = [row for row in one.regained if (row.kind, row.relation) == ("latent", None)]
        shown = [percent(row.recovery.recovered.share) or "-" for row in recovered]
        rows.append((f"**{_title(one)}**", "this experiment", "; ".join(best), ", ".join(shown)))
    note = f"{PAPER} reports the largest gain of its latents; here it is that of the latent chosen before."
    return [note, "", *markdown_table(("model", "SAE", "best single-latent gain, points", "R_K"), rows)]


def _runs(one: Experiment) -> Lines:
    rows = []
    for run in one.runs:
        attempts = one.store.attempts(run.run_id)
        made = f"{attempts[-1].morfi_version}, {attempts[-1].device}" if attempts else ""
        minutes = f"{one.store.summary(run.run_id).wall_s / 60:.1f}"
        rows.append((str(run.kind), run.run_id, made, minutes, run.fingerprint[:12]))
    return markdown_table(("command", "run", "morfi, device", "minutes", "fingerprint"), rows)
