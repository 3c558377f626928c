"""The picture of what chance gives: how many latents have so strong a trend, and how many by chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from morfi.report.picture import NARROW, Picture, add_legend, name_it, new_figure
from morfi.store.records import FalseDiscoveriesRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FOUND, _FALSE = "#31688e", "#d55e00"


def fdr_figure(rates: Sequence[FalseDiscoveriesRow], title: str, *, smallest_s: int | None) -> Picture:
    """The picture of the `rates` of one axis; `smallest_s` is the least |S| selected from, if any."""
    return Picture(lambda narrow: _figure(rates, title, smallest_s, narrow=narrow))


def _figure(
    rates: Sequence[FalseDiscoveriesRow], title: str, smallest_s: int | None, *, narrow: bool
) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(*((NARROW, 3.9) if narrow else (7.2, 3.4)))
    axes = figure.subplots()
    rows = sorted(rates, key=lambda row: row.s)
    s = [row.s for row in rows]
    axes.plot(s, [row.n_found for row in rows], color=_FOUND, marker="o", markersize=4, label="found")
    expected = [expected_of(row) for row in rows]
    axes.plot(s, expected, color=_FALSE, marker="s", markersize=4, linestyle="--", label="expected by chance")
    if smallest_s is not None:
        axes.axvline(smallest_s, color="0.4", linestyle=":", label=f"selected from |S| >= {smallest_s}")
    # From 0, where no shuffle gives a trend, through 1 to thousands.
    axes.set_yscale("symlog", linthresh=1)
    axes.set(xlabel="|S| of the trend, at least", ylabel="latents")
    axes.set_ylim(0, 1.5 * max(1, *(row.n_found for row in rows)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    add_legend(figure, *axes.get_legend_handles_labels(), narrow=narrow)
    name_it(figure, title, narrow=narrow)
    return figure


def few_of(
    rates: Sequence[FalseDiscoveriesRow], smallest_s: int | None, most: int = 20
) -> list[FalseDiscoveriesRow]:
    """At most `most` of the rates of one axis, the strongest trends first, evenly apart.

    Both ends are among them, and that of `smallest_s`, the least |S| selected from.
    """
    rows = sorted(rates, key=lambda row: -row.s)
    if len(rows) <= most:
        return rows
    steps = most - 2  # one place is left for the threshold
    places = {round(number * (len(rows) - 1) / steps) for number in range(steps + 1)}
    return [row for place, row in enumerate(rows) if place in places or row.s == smallest_s]


def expected_of(row: FalseDiscoveriesRow) -> float:
    """How many of the latents found are expected by chance."""
    return row.fdr * row.n_found
