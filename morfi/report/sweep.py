"""The accuracies of a sweep: a block for each group of questions, epoch settings by levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from morfi.conditions.condition import in_order
from morfi.conditions.levels import Property
from morfi.report.tables import aligned
from morfi.store.records import SweepAccuracy

GROUPS = ("test Known", "test Unknown", "train Unknown")  # in the order in which they are shown


def groups_of(rows: Iterable[SweepAccuracy]) -> list[str]:
    """The groups of questions among `rows`: those of `GROUPS` first, others by name."""
    found = {row.questions for row in rows}
    return [*(name for name in GROUPS if name in found), *sorted(found - set(GROUPS))]


def settings_of(rows: Iterable[SweepAccuracy]) -> list[str]:
    """The epoch settings among `rows`, the base model's left out: numbers first, by size."""
    return in_order(row.epoch_setting for row in rows if row.epoch_setting is not None)


def over_of(rows: Iterable[SweepAccuracy]) -> str:
    """What the intervals of `rows` are over."""
    return "seeds" if any(row.over_seeds for row in rows) else "answers"


def levels_of(rows: Iterable[SweepAccuracy]) -> list[float]:
    """The levels among `rows`, rising; the base model has none."""
    return sorted({row.level for row in rows if row.level is not None})


def sweep_table(rows: Sequence[SweepAccuracy], varied: Property) -> str:
    """The tables that `morfi sweep` ends with: accuracy in percent, a dash where there is none.

    Levels are the same columns in every block. The base model has no level: its number stands in all of them.
    Of several seeds the mean stands there, with half of its interval over seeds.
    """
    levels, settings = levels_of(rows), settings_of(rows)
    columns = [varied.shown(level) for level in levels] or ["accuracy"]
    if not rows:
        return "no accuracies"
    blocks = []
    for group in groups_of(rows):
        inside = [row for row in rows if row.questions == group]
        base = next((row for row in inside if row.is_base), None)
        cells = {(row.epoch_setting, row.level): _cell(row) for row in inside}
        body = [(setting, *(cells.get((setting, level), "-") for level in levels)) for setting in settings]
        if base is not None:
            body = [("base model", *[_cell(base)] * len(columns)), *body]
        # One width for all blocks, whatever a block lacks.
        width = 12 if max(row.n_seeds for row in rows) > 1 else 6
        header = ("epochs".ljust(10), *(column.rjust(width) for column in columns))
        blocks.append(
            "\n".join(
                [_title(group, inside, varied), *aligned([header, *body], numeric=range(1, len(header)))]
            )
        )
    return "\n\n".join(blocks)


def _cell(row: SweepAccuracy) -> str:
    shown, over_seeds = f"{100 * row.mean:.1f}", row.over_seeds
    return shown if over_seeds is None else f"{shown} +- {100 * (over_seeds.high - row.mean):.1f}"


def _title(group: str, rows: Sequence[SweepAccuracy], varied: Property) -> str:
    """The title of a block: the group, its counts and its widest interval."""
    counts = sorted({row.n for row in rows})
    seeds = max(row.n_seeds for row in rows)
    widest = max(100 * max(row.ci_high - row.accuracy, row.accuracy - row.ci_low) for row in rows)
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    over = f"{varied.name} (n = {n}"
    if seeds > 1:
        over += f", {seeds} seeds; mean and 95 % interval over seeds; intervals over answers"
    else:
        over += "; 95 % intervals"
    return f"{group}, accuracy in % by {over} within {widest:.1f} points)"


def sweep_object(rows: Sequence[SweepAccuracy], varied: Property) -> dict[str, Any]:
    """The object of `morfi sweep --json`: by group the base model (null if not asked) and the checkpoints."""
    groups: dict[str, Any] = {}
    for group in groups_of(rows):
        inside = [row for row in rows if row.questions == group]
        base = next((row for row in inside if row.is_base), None)
        by_setting = [row for name in settings_of(inside) for row in inside if row.epoch_setting == name]
        groups[group] = {
            "base": base and _numbers(base),
            "checkpoints": [
                {"level": row.level, "epochs": row.epoch_setting, "n_seeds": row.n_seeds, **_numbers(row)}
                for row in sorted(by_setting, key=lambda row: row.level or 0)
            ],
        }
    return {"property": varied.name, "unit": varied.unit, "groups": groups}


def _numbers(row: SweepAccuracy) -> dict[str, Any]:
    over_seeds = row.over_seeds
    return {
        "n": row.n,
        "n_correct": row.n_correct,
        "accuracy": row.accuracy,
        "ci": [row.ci_low, row.ci_high],
        "by_seed": list(row.by_seed),
        "ci_over_seeds": over_seeds and [over_seeds.low, over_seeds.high],
    }
