"""The activity of a find run's latents: by place along the axis, over resamples, and where it is largest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.latents.activations import Activations, load_activations
from morfi.latents.find import Found, counted_questions, load_found
from morfi.latents.sae import Sae

if TYPE_CHECKING:
    import torch

    from morfi.store import Store

LIKELY = 0.95  # of the resamples lie in a band
MAX_DRAWN = 1000  # resamples for a band
_QUANTILES = (1.0, 0.9, 0.75, 0.5)  # of the questions that a latent fires on, by activation
_ROWS = 256  # at a time, of an SAE whose latents depend on each other


@dataclass(frozen=True, slots=True)
class Example:
    """A question at a quantile of a latent's activations, under the checkpoint where its mean is largest."""

    quantile: float
    activation: float
    question: str


@dataclass(frozen=True, slots=True)
class Activity:
    """A latent's activity along an axis; replicate trainings of a place count as one.

    `low` and `high` hold `LIKELY` of the means over resampled questions, `firing` is the share of questions
    that it fires on; one of each for every place of `places`.
    """

    places: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    firing: tuple[float, ...]
    examples: tuple[Example, ...]


def found_here(store: Store, find_run: str) -> Found | None:
    """The find run read back; None where its SAE or its captures are gone or other ones."""
    try:
        return load_found(store, find_run)
    except InputError:
        return None


def activity_of(store: Store, found: Found, latents: Sequence[int]) -> Mapping[str, Mapping[int, Activity]]:
    """The activity of latents by axis; {} where captures along an axis are gone or other ones.

    Resamples are drawn as `morfi find` drew them: questions within their relation, by the run's seed.
    """
    config = found.settings
    try:
        others = [load_activations(store, config.activations, config.layer, axis) for axis in config.axes[1:]]
    except InputError:
        return {}
    counted = counted_questions(config, store, found.activations)
    return {
        along.axis.along: activity_along(
            found.sae, along, latents, counted, n_resamples=config.resamples, seed=config.seed
        )
        for along in (found.activations, *others)
    }


def activity_along(
    sae: Sae,
    along: Activations,
    latents: Sequence[int],
    counted: Sequence[int],
    *,
    n_resamples: int,
    seed: int,
) -> dict[int, Activity]:
    """The activity of latents along an axis, in the questions at the places `counted`."""
    import torch

    from morfi.kernels.resample import resample_counts

    questions = [along.questions[place] for place in counted]
    n_drawn = min(n_resamples, MAX_DRAWN)
    counts = resample_counts([one.relation for one in questions], n_drawn, seed)[:, 1:].float()
    every = [_encoded(sae, one.values[list(counted)], latents) for one in along.residuals]  # of each [n, T]
    fullest = torch.stack([values.mean(0) for values in every]).argmax(0).tolist()
    places = sorted(set(along.levels))
    low, high, firing = [], [], []
    for place in places:
        own = [values for values, level in zip(every, along.levels, strict=True) if level == place]
        drawn = (counts.T @ torch.stack(own).mean(0) / len(questions)).sort(0).values  # [R, T]
        outside = (1 - LIKELY) / 2
        low.append(drawn[round(outside * (n_drawn - 1))])
        high.append(drawn[round((1 - outside) * (n_drawn - 1))])
        firing.append(torch.stack([(values > 0).float().mean(0) for values in own]).mean(0))
    lows, highs, firings = (torch.stack(one).T.tolist() for one in (low, high, firing))
    texts = [one.text for one in questions]
    return {
        latent: Activity(
            places=tuple(places),
            low=tuple(lows[number]),
            high=tuple(highs[number]),
            firing=tuple(firings[number]),
            examples=_examples(every[fullest[number]][:, number], texts),
        )
        for number, latent in enumerate(latents)
    }


def _encoded(sae: Sae, x: torch.Tensor, latents: Sequence[int]) -> torch.Tensor:
    """Activations of some latents alone, float32 [n, T]."""
    import torch

    from morfi.kernels.encoder import encode_reference

    chosen = torch.tensor(list(latents), dtype=torch.int64)
    with torch.no_grad():
        if sae.encoder.activation != "topk":
            return encode_reference(x, sae.encoder.select(chosen))
        return torch.cat([sae.encode(rows)[:, chosen] for rows in torch.split(x, _ROWS)])


def _examples(values: torch.Tensor, questions: Sequence[str]) -> tuple[Example, ...]:
    order = [int(place) for place in values.argsort(stable=True) if values[place] > 0]
    chosen = {share: order[round(share * (len(order) - 1))] for share in _QUANTILES} if order else {}
    return tuple(Example(share, float(values[place]), questions[place]) for share, place in chosen.items())
