"""The card of a latent: how it goes with the level, how dense it is, and where it is most active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from morfi.latents.activity import Activity, Example
from morfi.latents.logit_lens import SpokenFor
from morfi.report.document.html import text
from morfi.store.records import ConditionRow
from morfi.words import together

_WIDTH, _HEIGHT = 200, 40  # of the little curve, in units of its own


def card(
    row: Mapping[str, Any],
    conditions: Sequence[ConditionRow],
    gain: str,
    activity: Activity | None,
    tokens: SpokenFor | None,
) -> str:
    """The HTML of a latent's card; `gain` is what steering along it did, in words.

    `conditions` are those of the row's means; `activity` is None where the captures are gone, `tokens` where
    the model is.
    """
    direction = "rises" if row["direction"] > 0 else "falls"
    facts = {
        "S, rho": f"{row['s']:+d}, {row['rho']:+.2f}",
        "p, exact": f"{row['p_exact']:.2g}",
        "kept in": "-" if row["stability"] is None else f"{100 * row['stability']:.1f} % of resamples",
        "slope": f"{row['slope']:+.3g} for each unit of the level",
        "fires on": f"at most {100 * row['firing']:.1f} % of the questions",
        "steered": gain,
    }
    if activity is not None:
        each = zip(activity.places, activity.firing, strict=True)
        facts["fires on"] = together(f"{place:g}: {100 * share:.1f} %" for place, share in each)
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(fact)}</dd>" for name, fact in facts.items())
    by_place: dict[float, list[float]] = {}
    for mean, one in zip(row["means"], conditions, strict=True):
        by_place.setdefault(one.place, []).append(float(mean))
    means = [sum(own) / len(own) for _, own in sorted(by_place.items())]
    examples = _examples(activity.examples) if activity is not None else ""
    return (
        f'<article class="card"><h3>Latent {row["latent"]} {direction}</h3>{_curve(means, activity)}'
        f"<dl>{listed}</dl>{'' if tokens is None else _tokens(tokens)}{examples}</article>"
    )


def _tokens(tokens: SpokenFor) -> str:
    def shown(some: Sequence[str]) -> str:
        return " ".join(f"<code>{text(_visible(one))}</code>" for one in some)

    return f"<p>Promotes {shown(tokens.promoted)}</p><p>Suppresses {shown(tokens.suppressed)}</p>"


def _visible(token: str) -> str:
    """A token whose blanks and line ends can be seen."""
    return token.replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")


def _examples(examples: Sequence[Example]) -> str:
    shown = "".join(
        f"<li>{text(one.question)} <small>({_quantile(one.quantile)}, {one.activation:.3g})</small></li>"
        for one in examples
    )
    return f"<p>Most active, and at lower quantiles:</p><ol>{shown}</ol>" if shown else ""


def _quantile(share: float) -> str:
    return "the largest" if share == 1.0 else f"{100 * share:.0f} % quantile"


def _curve(means: Sequence[float], activity: Activity | None) -> str:
    """The means by condition, as a line from the lowest level to the highest, in the band of resamples."""
    largest = max(*means, *(activity.high if activity is not None else ())) or 1.0

    def points(values: Sequence[float]) -> list[str]:
        step = _WIDTH / max(1, len(values) - 1)
        return [
            f"{place * step:.1f},{_HEIGHT * (1 - 0.95 * value / largest):.1f}"
            for place, value in enumerate(values)
        ]

    band, told = "", ""
    if activity is not None:
        around = " ".join([*points(activity.low), *reversed(points(activity.high))])
        band = f'<polygon points="{around}"/>'
        ends = zip(activity.low, activity.high, strict=True)
        told = f"; 95 % bands {', '.join(f'{low:.3g} to {high:.3g}' for low, high in ends)}"
    said = (
        f"mean activation from the lowest level to the highest: {', '.join(f'{m:.3g}' for m in means)}{told}"
    )
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(said)}">{band}<polyline points="{" ".join(points(means))}"/></svg>'
    )
