"""The picture of a find run: mean activation of the selected latents along its axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.conditions.levels import EPOCHS as EPOCHS_TRAINED
from morfi.conditions.levels import NOT_INDEPENDENT, Property
from morfi.latents.activations import LEVEL
from morfi.report.sweep_figure import MARGIN, write_picture
from morfi.store.records import ConditionRow
from morfi.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_DRAWN = 10  # latents a panel, those with the highest score
_PANELS = {1: "rising latent", -1: "falling latent"}


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

    axes_of_run = list(dict.fromkeys(row.axis for row in conditions))
    figure = Figure(figsize=(9.2, 3.8 * len(axes_of_run)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(axes_of_run), 2, sharey=True, squeeze=False)
    for row_of_panels, along in zip(panels, axes_of_run, strict=True):
        own = [row for row in conditions if row.axis == along]
        column = "means" if along == axes_of_run[0] else "epochs_means"
        for axes, (direction, name) in zip(row_of_panels, _PANELS.items(), strict=True):
            chosen = [row for row in latents if row["direction"] == direction]
            _draw(axes, own, {row["latent"]: row[column] for row in chosen[:N_DRAWN]})
            more = f", the first {N_DRAWN}" if len(chosen) > N_DRAWN else ""
            axes.set_title(f"{counted(len(chosen), name)}{more}", loc="left")
            _frame(axes, own, varied if along == LEVEL else None)
            if chosen:
                place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
                axes.legend(**place, frameon=False, title="latent", fontsize=7)
        row_of_panels[0].set_ylabel("mean activation, share of its largest")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    return figure


def _frame(axes: Axes, conditions: Sequence[ConditionRow], varied: Property | None) -> None:
    """What a panel is drawn along: the level of `varied`, or the epochs of one level."""
    places = sorted({row.place for row in conditions})
    low, high = (varied or EPOCHS_TRAINED).scale(places)
    margin = MARGIN * (high - low)
    label = varied.label if varied is not None else f"{EPOCHS_TRAINED.label}\n{NOT_INDEPENDENT}"
    axes.set(xlabel=label, ylim=(0, 1.05), xlim=(low - margin, high + margin))
    axes.set_xticks(places)
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def _draw(axes: Axes, conditions: Sequence[ConditionRow], latents: Mapping[int, Sequence[float]]) -> None:
    """Draws the means of each latent."""
    from matplotlib import colormaps

    places = sorted({row.place for row in conditions})
    for number, (latent, given) in enumerate(latents.items()):
        means = [float(mean) for mean in given]
        largest = max(means) or 1.0
        colour = colormaps["viridis"](0.05 + 0.85 * number / max(1, len(latents) - 1))
        by_place = [
            [mean / largest for mean, row in zip(means, conditions, strict=True) if row.place == place]
            for place in places
        ]
        averages = [sum(values) / len(values) for values in by_place]
        axes.plot(places, averages, color=colour, marker="o", markersize=3.5, label=str(latent))
        if len(conditions) > len(places):
            for place, values in zip(places, by_place, strict=True):
                axes.plot([place] * len(values), values, ".", color=colour, markersize=2.5)
