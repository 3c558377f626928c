"""The sections of a report, in the order in which they are read; one whose runs are missing is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from morfi.conditions.levels import varied_in
from morfi.latents.activations import EPOCHS, LEVEL
from morfi.latents.find import MIN_EXPLAINED, FindRun
from morfi.questions.relations import named
from morfi.report.document.answer import asked_of
from morfi.report.document.cards import card
from morfi.report.document.drawings import drawing
from morfi.report.document.experiment_file import trained_sae
from morfi.report.document.figures import accuracy_figure, chance_figure, trends_figure
from morfi.report.document.gains import gained, gains, recovered
from morfi.report.document.glossary import glossary
from morfi.report.document.html import Cell, Section, folded, items, last_part, paragraph, table
from morfi.report.document.material import SHOWN, Material
from morfi.report.document.rules import claims, rules, seeds
from morfi.report.fdr_figure import expected_of, few_of
from morfi.report.findings import Experiment
from morfi.report.findings.chain import Chain
from morfi.report.sweep import groups_of, levels_of, over_of
from morfi.report.sweep import settings_of as epochs_of
from morfi.report.trends import criteria
from morfi.runs.settings import settings_of
from morfi.store.records import FalseDiscoveriesRow, SweepAccuracy, TrendSummaryRow
from morfi.words import counted, together

_MANY = 400  # answers that flipped in a table
_ALONG = {LEVEL: "levels", EPOCHS: "epochs"}


def setting(material: Material) -> Section | None:
    """What was done, in a table."""
    body = paragraph(asked_of(material)) + table(("", ""), setting_rows(material), caption="The setting")
    return Section("setting", "What was done", body)


def setting_rows(material: Material) -> list[tuple[str, str]]:
    """What was done: names and values."""
    chain = material.chain
    last = chain.last
    rows = [("model", last.base or last.ckpt), ("questions", f"{last.data} ({last.data_sha256[:12]})")]
    if chain.split is not None:
        facts = material.store.knowledge(chain.split.run_id)
        relations = sorted({row.relation for row in facts})
        known = sum(row.known for row in facts)
        rows += [
            ("relations", together(map(named, relations))),
            ("asked", f"{counted(len(facts), 'question')}, {known} of them known to the model"),
        ]
    if chain.mix is not None:
        levels, size = chain.mix.config["levels"], chain.mix.config["size"]
        rows.append(("mixtures", f"{together(levels)} % Unknown, {counted(size, 'question')} each"))
    if chain.train is not None:
        config = chain.train.config
        rows.append(
            (
                "training",
                f"LoRA of rank {config['rank']}, learning rate {config['lr']:g}, epochs "
                f"{together(config['epochs'])}, {counted(config['seeds'], 'training')} a mixture",
            )
        )
    if chain.find is not None:
        found = settings_of(chain.find, FindRun)
        rows.append(("SAE", f"{_sae(chain, found)} ({found.sae_sha256[:12]}), after layer {found.layer}"))
        rows.append(("trends", f"along {found.along}, method {found.method}, epochs {found.epochs}"))
    if chain.steer is not None:
        steering = material.steering
        rows.append(
            (
                "steering",
                f"{steering.ckpt} of epochs {steering.epochs} after layer {steering.layer}, {steering.op}, "
                f"positions {steering.positions}, {together(steering.questions.split(','))} questions; "
                f"strengths chosen on {steering.choose_on}, reported on {steering.report_on}",
            )
        )
    return rows


def _sae(chain: Chain, found: FindRun) -> str:
    """The SAE by what it was trained on, where that is known, else by its name."""
    trained = trained_sae(chain)
    if trained is None or "d_sae" not in trained:
        return last_part(found.sae)
    return f"BatchTopK SAE of {trained['d_sae']:,} latents, trained on {trained['config']['tokens']:,} tokens"


def accuracy(material: Material) -> Section | None:
    """Accuracy against the level, by epochs."""
    run = material.chain.sweep
    if run is None or not (rows := material.store.sweep_accuracies(run.run_id)):
        return None
    varied = varied_in(run)
    body = drawing(accuracy_figure(material, run))
    for group in groups_of(rows):
        inside = [row for row in rows if row.questions == group]
        cells = {(row.epoch_setting, row.level): row for row in inside}
        levels = levels_of(rows)
        lines: list[list[str]] = []
        for name in epochs_of(inside):
            shown = [cells.get((name, level)) for level in levels]
            lines.append([_setting(name), *(_interval(one) if one else "-" for one in shown)])
        base = cells.pop((None, None), None)
        plain = "" if base is None else f"; base model {_interval(base)}, over {base.n} answers"
        n = together(sorted({row.n for row in cells.values()}) or [0])
        header = ("", *(varied.shown(level) for level in levels))
        over = f"with 95 % intervals over {over_of(inside)}"
        body += table(header, lines, caption=f"{group}, n {n}: accuracy in %, {over}{plain}")
    return Section("accuracy", f"What training costs: accuracy by {varied.name}", body)


def trends(material: Material) -> Section | None:
    """The latents that follow the level, and what chance would give."""
    run = material.chain.find
    if run is None or not (summaries := material.store.trend_summaries(run.run_id)):
        return None
    selected = material.store.latents(run.run_id, selected=True)
    conditions = material.store.trend_conditions(run.run_id)
    said = []
    for one in summaries:
        explained = [row.explained_variance for row in conditions if row.axis == one.axis]
        said.append(
            f"Along the {_ALONG[one.axis]}, {one.n_firing} latents fire on "
            f"{counted(one.n_questions, 'question')}; {len(selected)} were selected. Of perfect trends "
            f"chance alone would give {one.expected_false:.2g}. The SAE explains {min(explained):.3f} to "
            f"{max(explained):.3f} of the variance."
        )
        said.append(f"Its rule: {criteria(settings_of(run, FindRun), one.smallest_s)}.")
    body = paragraph(*said)
    body += drawing(trends_figure(material, run))
    rates = material.store.false_discoveries(run.run_id)
    for one in summaries:
        body += drawing(chance_figure(material, run, one))
        body += _rates(one, [row for row in rates if row.axis == one.axis])
    return Section("trends", f"Which latents follow the {varied_in(run).name}", body)


def _rates(summary: TrendSummaryRow, rates: Sequence[FalseDiscoveriesRow]) -> str:
    """The table of false discovery rates of an axis, of many thresholds a choice; nothing without any."""
    if not rates:
        return ""
    shown = few_of(rates, summary.smallest_s)
    rows = [
        (
            f"|S| >= {row.s}{', where the rule begins' if row.s == summary.smallest_s else ''}",
            Cell(str(row.n_found), row.n_found),
            Cell(f"{expected_of(row):.1f}", expected_of(row)),
            Cell(f"{row.fdr:.3f}", row.fdr),
        )
        for row in shown
    ]
    caption = (
        f"Latents with so strong a trend along the {_ALONG[summary.axis]}; the rate is by shuffled levels"
    )
    if len(shown) < len(rates):
        caption += f"; {len(shown)} of {len(rates)} thresholds: the picture has them all"
    return table(("trend", "latents", "by chance", "false discovery rate"), rows, caption=caption)


def flips(material: Material) -> Section | None:
    """Every answer that steering changed from right to wrong or back."""
    every = [one for own in material.pairs.values() for one in own if one.was_right != one.is_right]
    if not every:
        return None
    rows = [
        (
            one.question,
            named(one.relation),
            one.direction,
            one.change,
            one.before,
            one.after,
            one.reference,
            " or ".join(one.accepted[:3]),
        )
        for one in every[:_MANY]
    ]
    header = ("question", "relation", "direction", "change", "before", "steered", material.steering.reference)
    left = f"; the first {_MANY} of {len(every)}" if len(every) > _MANY else ""
    whose = f", {material.one_seed}" if material.one_seed else ""
    body = table(
        (*header, "accepted"), rows, caption=f"On {material.steering.report_on}{whose}{left}", sortable=True
    )
    names = together(dict.fromkeys(one.direction for one in every))
    body = folded(f"{counted(len(every), 'answer')} along {names}{whose}", body)
    return Section("flips", "Answers that flipped", body)


def cards(material: Material) -> Section | None:
    """A card for each of the first selected latents."""
    run = material.chain.find
    if run is None:
        return None
    rows = material.store.latents(run.run_id, selected=True, limit=SHOWN).to_pylist()
    if not rows:
        return None
    conditions = material.store.trend_conditions(run.run_id)
    along = [row for row in conditions if row.axis == conditions[0].axis]
    activity = material.activity.get(along[0].axis, {})
    along_of = {one.latent: one for one in material.experiment.directions}
    made = [
        card(
            row,
            along,
            gained(along_of.get(row["latent"])),
            activity.get(row["latent"]),
            material.tokens.get(row["latent"]),
        )
        for row in rows
    ]
    lens = (
        "The tokens are those that a latent's decoder row raises and lowers most, read off by the model's "
        "final norm and unembedding; the layers between are passed over."
    )
    if not material.tokens:
        lens = "The tokens that a latent speaks for are not shown: its model or SAE is not where it was."
    if not activity:
        lens += " No bands, firing rates and questions: the captures or the SAE are not where they were."
    shown = folded(counted(len(made), "card"), f'<div class="cards">{"".join(made)}</div>')
    return Section("latents", "The latents", paragraph(lens) + shown)


def limits(material: Material) -> Section | None:
    """What the experiment cannot tell."""
    lines = limit_lines(material)
    return Section("limits", "What was not controlled for", items(lines)) if lines else None


def limit_lines(material: Material) -> list[str]:
    """What the experiment cannot tell, a sentence or two each."""
    chain = material.chain
    lines: list[str] = []
    if chain.train is not None and chain.train.config["seeds"] == 1:
        lines.append("There is one training of each mixture: another seed may give other numbers.")
    if chain.find is not None:
        conditions = material.store.trend_conditions(chain.find.run_id)
        if conditions and (worst := min(row.explained_variance for row in conditions)) < MIN_EXPLAINED:
            lines.append(
                f"The SAE explains {worst:.3f} of the variance of a checkpoint, less than {MIN_EXPLAINED:g}: "
                "its latents say little about this model."
            )
        lines.append("Resampling questions measures stability over questions, not over trainings.")
    if chain.steer is not None:
        if not any(material.steering.picks.values()):
            lines.append("No other rule of selecting latents was tried beside the trend.")
        lines.append("The largest of many gains is too large, even where it was chosen on other questions.")
        lines += _strengths(material.experiment)
    if chain.split is None:
        lines.append("What the base model knew was not measured: known and unknown questions are one group.")
    return lines


def _strengths(experiment: Experiment) -> list[str]:
    """Says where smaller strengths might have done better than those that were tried."""
    every = [one for _, found in experiment.by_seed.values() for one in found.outcomes if len(one.tried) > 2]
    smallest = [one for one in every if abs(one.best.alpha) == min(abs(other.alpha) for other in one.tried)]
    if 2 * len(smallest) <= len(every):
        return []
    return [
        f"Along {len(smallest)} of {counted(len(every), 'direction')} (of all seeds) the best strength is "
        "the smallest that was tried: smaller ones may gain more, or cost less."
    ]


SECTIONS: Sequence[Callable[[Material], Section | None]] = (
    setting,
    glossary,
    accuracy,
    trends,
    gains,
    rules,
    seeds,
    recovered,
    claims,
    flips,
    cards,
    limits,
)


def _setting(name: str) -> str:
    """An epoch setting in words."""
    return counted(int(name), "epoch") if name.isdecimal() else name


def _interval(row: SweepAccuracy) -> str:
    found = row.interval
    return f"{100 * row.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
