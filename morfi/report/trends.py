"""The latents of a find run, ranked, with what chance alone would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from morfi.conditions.condition import Condition, condition_of
from morfi.conditions.levels import NOT_INDEPENDENT, Property
from morfi.latents.activations import EPOCHS, LEVEL, LeftOut, left_out, left_out_lines
from morfi.latents.find import OF_LEVELS, FindRun
from morfi.latents.significance import Significance
from morfi.report.tables import aligned
from morfi.store.records import CapturedRow, ConditionRow, FalseDiscoveriesRow, TrendSummaryRow
from morfi.words import by_number, counted, together

if TYPE_CHECKING:
    import pyarrow as pa

    from morfi.latents.sae import Sae
    from morfi.latents.sae_check import Check

SHOWN = 20  # latents in the table
_ORDERED = {LEVEL: "levels", EPOCHS: "epochs"}


def capture_table(
    rows: Sequence[CapturedRow], varied: Property, n_questions: int, layers: Sequence[int]
) -> str:
    """The table of a capture, one line per checkpoint."""
    body = [
        (
            "base" if row.level is None else varied.shown(row.level),
            "-" if row.seed is None else str(row.seed),
            row.epoch_setting or "-",
            f"{row.load_s:.2f}",
            f"{row.capture_s:.2f}",
            row.path,
        )
        for row in rows
    ]
    header = ("level", "seed", "epochs", "load s", "capture s", "folder")
    table = aligned([header, *body], numeric=(0, 1, 3, 4))
    where = f"{by_number(len(layers), 'layer', 'layers')} {together(layers)}"
    head = f"{counted(n_questions, 'prompt')} each, the last token after {where}; level: {varied.name}"
    return "\n".join([head, "", *table])


def capture_object(rows: Sequence[CapturedRow], n_questions: int, layers: Sequence[int]) -> dict[str, Any]:
    """The object of `morfi capture --json`."""
    return {
        "n_questions": n_questions,
        "layers": list(layers),
        "checkpoints": [asdict(row) for row in rows],
    }


def trend_table(
    summaries: Sequence[TrendSummaryRow],
    conditions: Sequence[ConditionRow],
    fdr: Sequence[FalseDiscoveriesRow],
    latents: pa.Table,
    config: FindRun,
    *,
    captured: Sequence[CapturedRow],
    tested: Significance,
) -> str:
    """The text that `morfi find` ends with; `latents` are the selected ones in order of rank."""
    directions = latents["direction"].to_pylist()
    n = f"{directions.count(1)} rising and {directions.count(-1)} falling"
    lines: list[str] = []
    for summary in summaries:
        own = _along(conditions, summary.axis)
        explained = [row.explained_variance for row in own]
        passed = (
            f"{counted(summary.n_selected, 'latent')} {by_number(summary.n_selected, 'passes', 'pass')}"
            if len(summaries) > 1
            else f"{counted(len(latents), 'latent')} selected, {n}"
        )
        lines += [
            f"layer {summary.layer}, {counted(summary.n_questions, 'question')}, "
            f"{counted(len(own), 'condition')} of {_places(own, config)}; the SAE explains "
            f"{min(explained):.3f} to {max(explained):.3f} of their variance",
            f"{passed}, of {summary.n_firing} that fire; perfect trends that chance alone would give: "
            f"{summary.expected_false:.2g}",
        ]
        lines += left_out_lines(_left_out(own, captured))
        lines += [NOT_INDEPENDENT] if summary.axis == EPOCHS else []
        lines += _limits(summary, config)
        rates = [row for row in fdr if row.axis == summary.axis][:4]
        if rates:
            shown = ", ".join(f"{row.n_found} with |S| >= {row.s}: {row.fdr:.2f}" for row in rates)
            lines.append(f"false discovery rate by shuffled {_ORDERED[summary.axis]}: {shown}")
        if summary is summaries[0] and config.method != "page":
            lines.append(significance_line(tested, own))
        lines.append(criteria(config, summary.smallest_s))
    if len(summaries) > 1:
        shared = ", ".join(_shared(conditions)) or "none"
        lines.append(
            f"along both: {counted(len(latents), 'latent')} selected, {n}; the condition on both axes: "
            f"{shared}"
        )
    lines += _ranked(latents, is_page=config.method == "page", is_both=len(summaries) > 1)
    return "\n".join(lines)


def significance_line(tested: Significance, conditions: Sequence[ConditionRow]) -> str:
    """How many latents pass corrections for how many were tested, and whose statistic S is."""
    n_places, n_seeds = len({row.place for row in conditions}), len({row.seed for row in conditions})
    name = "Mann-Kendall's"
    if len(conditions) > n_places:
        name = f"Jonckheere-Terpstra's over {counted(n_seeds, 'training')} of each"
    least = "" if tested.least_p is None else f", the smallest of which is {tested.least_p:.2g}"
    return (
        f"S is {name}; by its p{least}, of {counted(tested.n_tested, 'latent')} "
        f"{tested.bonferroni} pass Bonferroni's correction at {tested.level:g} and "
        f"{tested.benjamini_hochberg} Benjamini and Hochberg's"
    )


def _places(rows: Sequence[ConditionRow], config: FindRun) -> str:
    """What conditions along an axis differ in."""
    n = len({row.place for row in rows})
    if rows[0].axis == EPOCHS:
        at = Property(config.property, config.unit).shown(rows[0].level)
        return f"{counted(n, 'number')} of epochs, all of {config.property} {at}"
    return f"{counted(n, 'level')} of {config.property}, epochs {rows[0].epoch_setting}"


def _along(conditions: Sequence[ConditionRow], axis: str) -> list[ConditionRow]:
    return [row for row in conditions if row.axis == axis]


def _left_out(used: Sequence[ConditionRow], captured: Sequence[CapturedRow]) -> list[LeftOut]:
    """The captured checkpoints that are not `used` along an axis, the conditions of which these are."""
    held = [one for one in map(condition_of, captured) if isinstance(one, Condition)]
    return left_out(used[0].axis, [condition_of(row) for row in used], held)


def _shared(conditions: Sequence[ConditionRow]) -> list[str]:
    """The conditions that lie on both axes, by their labels."""
    at_level = {row.ckpt_sha256 for row in conditions if row.axis == LEVEL}
    return [
        condition_of(row).label for row in conditions if row.axis == EPOCHS and row.ckpt_sha256 in at_level
    ]


def _limits(summary: TrendSummaryRow, config: FindRun) -> list[str]:
    """What so few conditions cannot tell, and why nothing could be selected."""
    if config.method != "fdr":
        few = "descriptive only: with so few conditions even a perfect trend is not significant"
        return [few] if summary.is_descriptive else []
    if summary.is_descriptive:
        p = summary.expected_false / summary.n_firing if summary.n_firing else 1.0
        return [
            f"nothing can be selected: chance puts so few conditions in order with a probability of {p:.2g}, "
            f"above --fdr {config.fdr:g}; take more levels or replicate trainings, or "
            "--method bootstrap for a descriptive answer"
        ]
    if summary.smallest_s is None:
        by_p = " both by shuffled levels and by p" if config.rho_of == OF_LEVELS else ""
        return [f"no |S| has a false discovery rate of at most {config.fdr:g}{by_p}, so nothing is selected"]
    return []


def criteria(config: FindRun, smallest_s: int | None) -> str:
    """The criteria by which a latent was selected."""
    has_replicates = config.rho_of == OF_LEVELS
    of_rho, by_p, and_s = (
        (" of replicates' means", ", also by p", " and S") if has_replicates else ("", "", "")
    )
    if config.method == "fdr":
        s = "|S|" if smallest_s is None else f"|S| >= {smallest_s},"
        return (
            f"selected: {s} at a false discovery rate of at most {config.fdr:g}{by_p}, its sign kept in "
            f"{config.stability:g} of {config.resamples} resamples of the questions, "
            f"mean |rho|{of_rho} >= {config.rho_min:g}, firing >= {config.min_firing:g}"
        )
    if config.method == "page":
        return (
            f"selected: Page's L within questions{and_s} at a false discovery rate of at most "
            f"{config.page_fdr:g}, rho{of_rho} >= {config.rho_min:g} in its direction, "
            f"firing >= {config.min_firing:g}"
        )
    return (
        f"selected: p <= {config.alpha:g} in {config.stability:g} of {config.resamples} resamples "
        f"of the questions, mean |rho|{of_rho} >= {config.rho_min:g}, firing >= {config.min_firing:g}"
    )


def _ranked(latents: pa.Table, *, is_page: bool, is_both: bool) -> list[str]:
    """The table of the first latents."""
    rows, lines = latents.slice(0, SHOWN).to_pylist(), []
    if rows:
        own = ("page z", "page p") if is_page else ("stability",)
        other = ("rho, epochs", "S, epochs") if is_both else ()
        header = ("latent", "", "rho", "S", *other, "p", "slope", "score", *own, "firing")
        body = [
            (
                str(row["latent"]),
                {1: "rises", -1: "falls"}.get(row["direction"], "-"),
                f"{row['rho']:+.2f}",
                f"{row['s']:+d}",
                *((f"{row['epochs_rho']:+.2f}", f"{row['epochs_s']:+d}") if is_both else ()),
                f"{row['p_exact']:.2g}",
                f"{row['slope']:+.3g}",
                f"{row['score']:.2f}",
                *_own(row, is_page=is_page),
                f"{row['firing']:.3f}",
            )
            for row in rows
        ]
        lines += ["", *aligned([header, *body], numeric=(0, *range(2, len(header))))]
        if len(latents) > len(rows):
            lines.append(f"and {len(latents) - len(rows)} more: table latent_trend of the store")
    return lines


def _own(row: Mapping[str, Any], *, is_page: bool) -> tuple[str, ...]:
    if is_page:
        return f"{row['page_z']:+.1f}", f"{row['page_p']:.2g}"
    return ("-" if row["stability"] is None else f"{row['stability']:.3f}",)


def trend_object(
    summaries: Sequence[TrendSummaryRow],
    conditions: Sequence[ConditionRow],
    fdr: Sequence[FalseDiscoveriesRow],
    latents: pa.Table,
    config: FindRun,
    *,
    captured: Sequence[CapturedRow],
    tested: Significance,
) -> dict[str, Any]:
    """The object of `morfi find --json`; along both axes `other_axis` is as it is along epochs alone."""
    axes = [
        {
            **asdict(summary),
            "note": NOT_INDEPENDENT if summary.axis == EPOCHS else None,
            "conditions": [asdict(row) for row in _along(conditions, summary.axis)],
            "left_out": [asdict(one) for one in _left_out(_along(conditions, summary.axis), captured)],
            "fdr": [asdict(row) for row in fdr if row.axis == summary.axis],
        }
        for summary in summaries
    ]
    first = {**axes[0], "method": config.method, "along": config.along, "at": config.at}
    first |= {"rho_of": config.rho_of, "significance": asdict(tested)}
    if len(axes) > 1:
        first |= {"n_selected": len(latents), "shared": _shared(conditions), "other_axis": axes[1]}
    # What only a run along both axes has is null in the others.
    columns = [name for name in latents.column_names if len(axes) > 1 or not name.startswith("epochs_")]
    return {**first, "latents": latents.select(columns).to_pylist()}


def sae_object(sae: Sae) -> dict[str, Any]:
    """The object of `morfi sae get --json`."""
    encoder = sae.encoder
    sizes = {"d_model": encoder.d_model, "d_sae": encoder.d_sae, "activation": encoder.activation}
    return {"sae": sae.release, **sizes, "layer": sae.layer, "sha256": sae.sha256}


def quality_object(found: Check) -> dict[str, Any]:
    """The object of `morfi sae check --json`."""
    names = ("condition", "n_tokens", "explained_variance", "l0", "n_dead")
    named = [dict(zip(names, row, strict=True)) for row in found.rows]
    return {
        "run_id": found.run_id,
        "layer": found.layer,
        "conditions": named,
        "left_out": list(map(asdict, found.left_out)),
    }


def check_table(found: Check) -> str:
    """The text of `morfi sae check`: the quality per condition, and which checkpoints it leaves out."""
    lines = left_out_lines(found.left_out)
    return "\n".join([quality_table(found.rows, found.d_sae), *([""] if lines else []), *lines])


def quality_table(rows: Sequence[tuple[str, int, float, float, int]], d_sae: int) -> str:
    """An SAE's quality per condition: name, tokens, explained variance, L0, latents that never fire."""
    header = ("", "tokens", "explained variance", "L0", f"silent of {d_sae}")
    body = [
        (name, str(n), f"{explained:.4f}", f"{l0:.1f}", f"{dead} ({100 * dead / d_sae:.1f} %)")
        for name, n, explained, l0, dead in rows
    ]
    return "\n".join(aligned([header, *body], numeric=range(1, len(header))))
