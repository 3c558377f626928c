"""The picture of a sweep: accuracy against the level, one line per epoch setting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from morfi.conditions.levels import Property
from morfi.errors import InputError
from morfi.report.picture import MARGIN, NARROW, Picture, add_legend, name_it, new_figure
from morfi.report.sweep import GROUPS, groups_of, levels_of, settings_of
from morfi.store.records import SweepAccuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What a panel shows, with its title; a panel without rows is left out.
_PANELS = {
    "test Known": "Known test questions: what is kept",
    "train Unknown": "Unknown training questions: what is learned",
}
_MARKERS = "osD^vPX"
_BASE_COLOUR = "0.4"
_UNORDERED_COLOUR = "#d55e00"  # of a setting that is no number of epochs, such as early-stop
_SPREAD = 0.024  # of the axis, from the first line's points to the last's, so that intervals do not overlap


def sweep_figure(rows: Sequence[SweepAccuracy], varied: Property, title: str) -> Picture:
    """The picture of `rows`.

    Bars are the rows' 95 % intervals; the points of one level stand slightly apart so that each bar shows.
    Missing checkpoints leave gaps. The same rows give the same bytes.
    Raises InputError where there is nothing to show.
    """
    if not _panels(rows):
        raise InputError(f"nothing to draw: no accuracy on {' or '.join(_PANELS)} questions")
    return Picture(lambda narrow: _figure(rows, varied, title, narrow=narrow))


def _figure(rows: Sequence[SweepAccuracy], varied: Property, title: str, *, narrow: bool) -> Figure:
    panels = _panels(rows)
    shape = (len(panels), 1) if narrow else (1, len(panels))
    size = (NARROW, 3.2 * len(panels) + 0.6) if narrow else (9.2 if len(panels) > 1 else 5.6, 3.8)
    figure = new_figure(*size)
    settings, levels = settings_of(rows), levels_of(rows)
    all_axes = list(figure.subplots(*shape, sharey=True, squeeze=False).flat)
    for axes, name in zip(all_axes, panels, strict=True):
        _draw(axes, [row for row in rows if row.questions == name], settings, levels, varied)
        axes.set_title(panels[name], loc="left")
        if narrow or axes is all_axes[0]:
            axes.set_ylabel("closed-book accuracy (%)")
    name_it(figure, title, narrow=narrow)
    lines: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(label, handle)
    add_legend(figure, list(lines.values()), list(lines), narrow=narrow)
    return figure


def _draw(
    axes: Axes,
    rows: Sequence[SweepAccuracy],
    settings: Sequence[str],
    levels: Sequence[float],
    varied: Property,
) -> None:
    """Draws one panel; `settings` and `levels` are those of all panels, so that looks and places agree."""
    for base in (row for row in rows if row.is_base):
        y = 100 * base.accuracy
        # Over the axis and not clipped, or half of it is lost where the accuracy is 0 or 100.
        axes.axhline(y, label="base model", color=_BASE_COLOUR, linestyle="--", clip_on=False, zorder=3)
        axes.axhspan(100 * base.ci_low, 100 * base.ci_high, color=_BASE_COLOUR, alpha=0.12, linewidth=0)
    found = {(row.epoch_setting, row.level): row for row in rows}
    colours = _colours(settings)
    low, high = varied.scale(levels)
    for number, setting in enumerate(settings):
        cells = [found.get((setting, level)) for level in levels]
        if not any(cells):
            continue
        shift = _SPREAD * (high - low) * (number - (len(settings) - 1) / 2) / max(1, len(settings) - 1)
        # A cell that is missing is NaN, which breaks the line.
        axes.errorbar(
            [level + shift for level in levels],
            [100 * cell.mean if cell else math.nan for cell in cells],
            yerr=[
                [100 * (cell.mean - cell.interval.low) if cell else math.nan for cell in cells],
                [100 * (cell.interval.high - cell.mean) if cell else math.nan for cell in cells],
            ],
            label=_label(setting),
            color=colours[setting],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            elinewidth=0.9,
            clip_on=False,
        )
    margin = MARGIN * (high - low)
    axes.set(xlabel=varied.label, xticks=levels, xlim=(low - margin, high + margin), ylim=(0, 100))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _panels(rows: Sequence[SweepAccuracy]) -> dict[str, str]:
    """The groups of questions that have a panel, with its title: all of a sweep that tells no Known ones."""
    groups = groups_of(rows)
    if set(groups) <= set(GROUPS):
        return {name: title for name, title in _PANELS.items() if name in groups}
    return {name: f"{name} questions" for name in groups if not name.endswith(("Known", "Unknown"))}


def _label(setting: str) -> str:
    return f"{setting} epoch{'' if setting == '1' else 's'}" if setting.isdecimal() else setting


def _colours(settings: Sequence[str]) -> dict[str, str]:
    """Colours that darken with the number of epochs and stay apart for colour-blind readers."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    numbers = [setting for setting in settings if setting.isdecimal()]
    colours = dict.fromkeys(settings, _UNORDERED_COLOUR)
    for place, setting in enumerate(numbers):
        colours[setting] = to_hex(colormaps["viridis_r"](0.15 + 0.8 * place / max(1, len(numbers) - 1)))
    return colours
