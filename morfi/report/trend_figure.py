"""The picture of a find run: mean activation of the selected latents against the level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.conditions.levels import Property
from morfi.report.sweep_figure import MARGIN, write_picture
from morfi.store.records import ConditionRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_DRAWN = 10  # latents a panel, those with the highest score
_PANELS = {1: "rising latents", -1: "falling latents"}


def trend_figure(
    conditions: Sequence[ConditionRow],
    latents: Sequence[Mapping[str, Any]],
    varied: Property,
    title: str,
    out: Path,
) -> tuple[Path, Path]:
    """Writes the picture of `latents`, rows of `Store.latents` in order of rank, as PNG and SVG.

    Each line is a latent's mean activation over the questions as a share of its own largest one, for latents
    differ in size; replicate trainings are dots, their mean is the line. Raises InputError where there is no
    place to write it.
    """
    return write_picture(out, lambda: _figure(conditions, latents, varied, title))


def _figure(
    conditions: Sequence[ConditionRow], latents: Sequence[Mapping[str, Any]], varied: Property, title: str
) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    low, high = varied.scale([row.level for row in conditions])
    margin = MARGIN * (high - low)
    for axes, (direction, name) in zip(figure.subplots(1, 2, sharey=True), _PANELS.items(), strict=True):
        own = [row for row in latents if row["direction"] == direction]
        _draw(axes, conditions, own[:N_DRAWN])
        more = f", the first {N_DRAWN}" if len(own) > N_DRAWN else ""
        axes.set_title(f"{len(own)} {name}{more}", loc="left")
        axes.set(xlabel=varied.label, ylim=(0, 1.05), xlim=(low - margin, high + margin))
        axes.set_xticks(sorted({row.level for row in conditions}))
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        if own:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="latent", fontsize=7)
    figure.axes[0].set_ylabel("mean activation, share of its largest")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    return figure


def _draw(axes: Axes, conditions: Sequence[ConditionRow], latents: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib import colormaps

    levels = sorted({row.level for row in conditions})
    for number, latent in enumerate(latents):
        means = [float(mean) for mean in latent["means"]]
        largest = max(means) or 1.0
        colour = colormaps["viridis"](0.05 + 0.85 * number / max(1, len(latents) - 1))
        by_level = [
            [mean / largest for mean, row in zip(means, conditions, strict=True) if row.level == level]
            for level in levels
        ]
        averages = [sum(values) / len(values) for values in by_level]
        axes.plot(levels, averages, color=colour, marker="o", markersize=3.5, label=str(latent["latent"]))
        if len(conditions) > len(levels):
            for level, values in zip(levels, by_level, strict=True):
                axes.plot([level] * len(values), values, ".", color=colour, markersize=2.5)
