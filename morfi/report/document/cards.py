"""The card of a latent: how it goes with the level, how dense it is, and where it is most active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.latents.find import load_found
from morfi.report.document.html import text

if TYPE_CHECKING:
    from morfi.store import Store

SHOWN = 12  # latents
_QUANTILES = (1.0, 0.9, 0.5)  # of the questions that it fires on, by activation
_WIDTH, _HEIGHT = 200, 40  # of the little curve, in units of its own


@dataclass(frozen=True, slots=True)
class Example:
    """A question at a quantile of a latent's activations, under the checkpoint where its mean is largest."""

    quantile: float
    activation: float
    question: str


def examples_of(store: Store, find_run: str, latents: Sequence[int]) -> Mapping[int, Sequence[Example]]:
    """Questions at several quantiles for each latent; {} where the SAE or the captures are gone."""
    import torch

    try:
        found = load_found(store, find_run)
    except InputError:
        return {}
    wanted = torch.tensor(list(latents))
    by_place = []
    for one in found.activations.residuals:
        with torch.no_grad():
            by_place.append(found.sae.encode(one.values.float())[:, wanted])
    means = torch.stack([one.mean(0) for one in by_place])
    examples = {}
    for column, latent in enumerate(latents):
        values = by_place[int(means[:, column].argmax())][:, column]
        order = [int(place) for place in values.argsort(stable=True) if values[place] > 0]
        chosen = {share: order[round(share * (len(order) - 1))] for share in _QUANTILES} if order else {}
        examples[latent] = [
            Example(share, float(values[place]), found.activations.questions[place].text)
            for share, place in chosen.items()
        ]
    return examples


def card(row: Mapping[str, Any], gain: str, examples: Sequence[Example]) -> str:
    """The HTML of a latent's card; `gain` is what steering along it did, in words."""
    direction = "rises" if row["direction"] > 0 else "falls"
    facts = {
        "S, rho": f"{row['s']:+d}, {row['rho']:+.2f}",
        "p, exact": f"{row['p_exact']:.2g}",
        "kept in": "-" if row["stability"] is None else f"{100 * row['stability']:.1f} % of resamples",
        "fires on": f"{100 * row['firing']:.1f} % of the questions, where it fires most",
        "slope": f"{row['slope']:+.3g} for each unit of the level",
        "steered": gain,
    }
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(fact)}</dd>" for name, fact in facts.items())
    shown = "".join(
        f"<li>{text(one.question)} <small>({_quantile(one.quantile)}, {one.activation:.3g})</small></li>"
        for one in examples
    )
    most = f"<p>Most active, and at lower quantiles:</p><ol>{shown}</ol>" if shown else ""
    return (
        f'<article class="card"><h3>Latent {row["latent"]} {direction}</h3>'
        f"{_curve([float(mean) for mean in row['means']])}<dl>{listed}</dl>{most}</article>"
    )


def _quantile(share: float) -> str:
    return "the largest" if share == 1.0 else f"{100 * share:.0f} % quantile"


def _curve(means: Sequence[float]) -> str:
    """The means by condition, as a line from the lowest level to the highest."""
    largest = max(means) or 1.0
    step = _WIDTH / max(1, len(means) - 1)
    points = " ".join(
        f"{place * step:.1f},{_HEIGHT * (1 - 0.9 * mean / largest):.1f}" for place, mean in enumerate(means)
    )
    said = text(
        f"mean activation from the lowest level to the highest: {', '.join(f'{m:.3g}' for m in means)}"
    )
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{said}"><polyline points="{points}"/></svg>'
    )
