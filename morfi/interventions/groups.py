"""The directions of a steer run by how they were chosen, held against each other on the same questions."""

from __future__ import annotations

from dataclasses import dataclass

from morfi.runs.compare import Difference
from morfi.statistics import Interval

LATENT, CONTROL, RANDOM, DELTA_U = "latent", "control", "random", "delta_u"
DOWN, UP = "down", "up"  # rising latents that are best steered down, falling ones that are best steered up


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
