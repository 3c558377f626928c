"""The directions of a steer run by how they were chosen, held against each other on the same questions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.interventions.rivals import RIVALS
from morfi.interventions.verdicts import Arm, Verdicts
from morfi.runs.compare import Difference, difference
from morfi.statistics import Interval, paired_bootstrap_interval, spread_interval

if TYPE_CHECKING:
    from morfi.interventions.outcome import Outcome

LATENT, CONTROL, RANDOM, DELTA_U = "latent", "control", "random", "delta_u"
DOWN, UP = "down", "up"  # rising latents that are best steered down, falling ones that are best steered up
_BY_KIND = (LATENT, CONTROL, RANDOM, DELTA_U)


@dataclass(frozen=True, slots=True)
class Margin:
    """A difference of mean gains, with the paired bootstrap's 95 % interval over questions."""

    difference: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Group:
    """Directions that were chosen in one way: their mean gain, and the best by what strengths were chosen on.

    `kind` is latent (by the trend, unless ids were given), a rival rule, control, random or delta_u; or down
    and up, the rising latents whose best alpha is negative, and the falling ones whose is positive.
    `interval` is t over directions. `margin` and `best_margin` are what the latents' mean and their best have
    over this group's; of "up", what those of "down" have.
    """

    kind: str
    n: int
    gain: float
    interval: Interval | None  # None for fewer than two, and for gains that are all the same
    best: str
    best_alpha: float
    best_chosen: float  # its gain on the questions for choosing
    best_gain: Difference
    margin: Margin | None = None
    best_margin: Difference | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """The verdicts of the questions that are reported, by arm."""

    verdicts: Verdicts
    question_ids: Sequence[str]

    def right(self, one: Outcome) -> list[bool]:
        """Whether each question is right along a direction at its best strength."""
        found = self.verdicts.of(Arm(one.direction.direction, one.best.alpha))
        return [found[question_id] for question_id in self.question_ids]

    def mean_right(self, group: Sequence[Outcome]) -> list[float]:
        """The share of directions along which each question is right."""
        every = [self.right(one) for one in group]
        return [sum(column) / len(every) for column in zip(*every, strict=True)]


def groups_of(
    outcomes: Sequence[Outcome], picks: Mapping[str, Sequence[int]], reported: Reported
) -> list[Group]:
    """The groups among `outcomes`, in order; those without directions are left out."""
    asked = [one for one in outcomes if one.reported is not None]
    members = {kind: [one for one in asked if one.direction.kind == kind] for kind in _BY_KIND}
    by_latent = {one.direction.latent: one for one in asked if one.direction.kind in (LATENT, "rival")}
    rivals = {
        rule: [by_latent[latent] for latent in picks.get(rule, ()) if latent in by_latent] for rule in RIVALS
    }
    latents = members.pop(LATENT)
    found = [_group(LATENT, latents, [], reported)]
    found += [_group(kind, own, latents, reported) for kind, own in (rivals | members).items()]
    down = [one for one in latents if one.direction.trend > 0 and one.best.alpha < 0]
    up = [one for one in latents if one.direction.trend < 0 and one.best.alpha > 0]
    found += [_group(DOWN, down, [], reported), _group(UP, up, down, reported)]
    return [one for one in found if one is not None]


def _group(kind: str, own: Sequence[Outcome], against: Sequence[Outcome], reported: Reported) -> Group | None:
    """One group, held against the directions of `against`; None without directions."""
    if not own:
        return None
    best = _best(own)
    gains = [one.reported.difference for one in own if one.reported is not None]
    assert best.reported is not None
    return Group(
        kind=kind,
        n=len(own),
        gain=math.fsum(gains) / len(gains),
        interval=spread_interval(gains),
        best=best.direction.direction,
        best_alpha=best.best.alpha,
        best_chosen=best.best.gain,
        best_gain=best.reported,
        margin=_margin(against, own, reported) if against else None,
        best_margin=difference(reported.right(best), reported.right(_best(against))) if against else None,
    )


def _best(own: Sequence[Outcome]) -> Outcome:
    """The best by what strengths were chosen on; of equally good ones the first."""
    return max(own, key=lambda one: (one.best.gain, -one.direction.position))


def _margin(first: Sequence[Outcome], second: Sequence[Outcome], reported: Reported) -> Margin:
    """The mean gain of the first less that of the second."""
    pairs = zip(reported.mean_right(first), reported.mean_right(second), strict=True)
    differences = [round(one - other, 12) for one, other in pairs]
    return Margin(math.fsum(differences) / len(differences), paired_bootstrap_interval(differences))
