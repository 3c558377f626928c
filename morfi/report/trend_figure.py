"""The picture of a find run: mean activation of the selected latents along its axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from morfi.conditions.levels import EPOCHS as EPOCHS_TRAINED
from morfi.conditions.levels import NOT_INDEPENDENT, Property
from morfi.latents.activations import LEVEL
from morfi.latents.activity import Activity
from morfi.report.picture import MARGIN, NARROW, Picture, name_it, new_figure
from morfi.store.records import ConditionRow
from morfi.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_DRAWN = 10  # latents a panel, those with the highest score
_PANELS = {1: "rising latent", -1: "falling latent"}


def drawn(latents: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The latents that have a line, of rows in order of rank."""
    return [row for direction in _PANELS for row in _rows(latents, direction)[:N_DRAWN]]


def trend_figure(
    conditions: Sequence[ConditionRow],
    latents: Sequence[Mapping[str, Any]],
    varied: Property,
    title: str,
    activity: Mapping[str, Mapping[int, Activity]] = MappingProxyType({}),
) -> Picture:
    """The picture of `latents`, rows of `Store.latents` in order of rank.

    Each line is a latent's mean activation over the questions as a share of its own largest one, for latents
    differ in size; replicate trainings are dots, their mean is the line. Bands are those of `activity`.
    """
    return Picture(lambda narrow: _figure(conditions, latents, varied, title, activity, narrow=narrow))


def _figure(
    conditions: Sequence[ConditionRow],
    latents: Sequence[Mapping[str, Any]],
    varied: Property,
    title: str,
    activity: Mapping[str, Mapping[int, Activity]],
    *,
    narrow: bool,
) -> Figure:
    axes_of_run = list(dict.fromkeys(row.axis for row in conditions))
    n = len(axes_of_run)
    figure = new_figure(*((NARROW, 6.8 * n) if narrow else (9.2, 3.8 * n)))
    shape = (2 * n, 1) if narrow else (n, 2)
    panels = figure.subplots(*shape, sharey=True, squeeze=False).reshape(n, 2)
    for row_of_panels, along in zip(panels, axes_of_run, strict=True):
        own = [row for row in conditions if row.axis == along]
        column = "means" if along == axes_of_run[0] else "epochs_means"
        for axes, (direction, name) in zip(row_of_panels, _PANELS.items(), strict=True):
            chosen = _rows(latents, direction)
            means = {row["latent"]: row[column] for row in chosen[:N_DRAWN]}
            _draw(axes, own, means, activity.get(along, {}))
            more = f", the first {N_DRAWN}" if len(chosen) > N_DRAWN else ""
            axes.set_title(f"{counted(len(chosen), name)}{more}", loc="left")
            _frame(axes, own, varied if along == LEVEL else None)
            if chosen:
                place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
                axes.legend(**place, frameon=False, title="latent", fontsize=8)
            if narrow or axes is row_of_panels[0]:
                axes.set_ylabel("mean activation, share of its largest")
    name_it(figure, title, narrow=narrow)
    return figure


def _rows(latents: Sequence[Mapping[str, Any]], direction: int) -> list[Mapping[str, Any]]:
    return [row for row in latents if row["direction"] == direction]


def _frame(axes: Axes, conditions: Sequence[ConditionRow], varied: Property | None) -> None:
    """What a panel is drawn along: the level of `varied`, or the epochs of one level."""
    places = sorted({row.place for row in conditions})
    low, high = (varied or EPOCHS_TRAINED).scale(places)
    margin = MARGIN * (high - low)
    label = varied.label if varied is not None else f"{EPOCHS_TRAINED.label}\n{NOT_INDEPENDENT}"
    axes.set(xlabel=label, xlim=(low - margin, high + margin))
    axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
    axes.set_xticks(places)
    axes.grid(axis="y", color="0.9", linewidth=0.8)


def _draw(
    axes: Axes,
    conditions: Sequence[ConditionRow],
    latents: Mapping[int, Sequence[float]],
    activity: Mapping[int, Activity],
) -> None:
    """Draws the means of each latent, and the band of resampled questions around them."""
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
        if latent in activity:
            found = activity[latent]
            low, high = ([value / largest for value in one] for one in (found.low, found.high))
            axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        if len(conditions) > len(places):
            for place, values in zip(places, by_place, strict=True):
                axes.plot([place] * len(values), values, ".", color=colour, markersize=2.5)
