"""The picture of a steer run: gain against strength on the questions for choosing, one line per direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from morfi.engine.operations import OPERATIONS
from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.interventions.outcome import Outcome, Steered
from morfi.report.picture import NARROW, Picture, add_legend, name_it, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_NAMED = 10  # latents with a colour and a name of their own, the best
# Kinds whose directions look alike: the colour and the style of their lines, and their name.
_ALIKE = {
    "rival": ("#cc79a7", "-", "latents of other rules"),
    "control": ("0.55", "-", "control latents"),
    "random": ("0.55", ":", "random directions"),
}
_DELTA_U = "#d55e00"


def steer_figure(found: Steered, config: SteerRun, title: str) -> Picture:
    """The picture of `found`.

    The amounts that an operation takes are an axis; where it takes none, bars stand instead. Raises
    InputError where there is nothing to show.
    """
    shown = [one for one in found.outcomes if one.direction.kind not in ("combined", "scan")]
    if not shown:
        raise InputError("nothing to draw: no directions were steered along")
    return Picture(lambda narrow: _figure(shown, config, title, narrow=narrow))


def _figure(shown: Sequence[Outcome], config: SteerRun, title: str, *, narrow: bool) -> Figure:
    has_strengths = OPERATIONS[config.op].amount is not None
    figure = new_figure(*((NARROW, 4.9) if narrow else (7.2, 4.2)))
    axes = figure.subplots()
    if has_strengths:
        _lines(axes, shown, config, narrow=narrow)
    else:
        _bars(axes, shown)
    axes.axhline(0, color="0.2", linewidth=0.8, zorder=1)
    axes.set_ylabel(f"gain in accuracy on {config.choose_on} (points)")
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    if has_strengths:
        lines = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        last = [label for _, _, label in _ALIKE.values() if label in lines]
        labels = [*(label for label in lines if label not in last), *last]
        add_legend(figure, [lines[label] for label in labels], labels, narrow=narrow)
    name_it(figure, title, narrow=narrow)
    return figure


def _lines(axes: Axes, shown: Sequence[Outcome], config: SteerRun, *, narrow: bool) -> None:
    from matplotlib import colormaps

    named: set[str] = set()
    for kind, (colour, style, label) in _ALIKE.items():
        for one in (one for one in shown if one.direction.kind == kind):
            _line(axes, one, color=colour, linestyle=style, linewidth=1, label=_once(label, named))
    latents = [one for one in shown if one.direction.kind == "latent"]
    for one in latents[N_NAMED:]:
        _line(axes, one, color="#9ecae1", linewidth=0.9, label=_once("further latents", named))
    for number, one in enumerate(latents[:N_NAMED]):
        shade = colormaps["viridis"](0.05 + 0.85 * number / max(1, min(N_NAMED, len(latents)) - 1))
        _line(axes, one, color=shade, marker="o", markersize=3.5, label=one.direction.direction)
    for one in (one for one in shown if one.direction.kind == "delta_u"):
        _line(axes, one, color=_DELTA_U, marker="s", markersize=4.5, linewidth=2.2, label="delta_u")
    amount = OPERATIONS[config.op].amount
    assert amount is not None
    axes.set_xlabel(amount.says)
    if not amount.in_norms:
        return
    # Strengths double from one to the next, so that equal steps would crowd the small ones.
    smallest = min(abs(tried.alpha) for one in shown for tried in one.tried if tried.alpha)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.6, base=2)
    ticks = sorted({0.0, *(tried.alpha for one in shown for tried in one.tried)})
    turned: dict[str, Any] = {"rotation": 90} if narrow else {}
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8, **turned)
    axes.minorticks_off()


def _line(axes: Axes, one: Outcome, **look: Any) -> None:
    """One direction; where strengths were added the unsteered point belongs to the line."""
    points = [(tried.alpha, 100 * tried.gain) for tried in one.tried]
    operation = OPERATIONS[one.direction.operation]
    if operation.is_sum:
        points = sorted([*points, (0.0, 0.0)])
    elif operation.amount is None:  # a baseline that has no strength, beside latents that do
        label = look.pop("label")
        axes.axhline(points[0][1], label=label, color=look["color"], linewidth=look.get("linewidth", 1.2))
        return
    axes.plot([x for x, _ in points], [y for _, y in points], **{"linewidth": 1.4, **look})


def _once(label: str, named: set[str]) -> str:
    """`label` the first time, then what matplotlib leaves out of a legend."""
    if label in named:
        return "_"
    named.add(label)
    return label


def _bars(axes: Axes, shown: Sequence[Outcome]) -> None:
    own = {"latent": "#31688e", "delta_u": _DELTA_U, "random": "0.75"}
    colours = {kind: colour for kind, (colour, _, _) in _ALIKE.items()} | own
    axes.bar(
        range(len(shown)),
        [100 * one.best.gain for one in shown],
        color=[colours[one.direction.kind] for one in shown],
    )
    axes.set_xticks(range(len(shown)), [one.direction.direction for one in shown], rotation=90, fontsize=8)
