"""Estimates, groups and verdicts as a report writes them: gains in points, shares in percent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from morfi.interventions.groups import CONTROL, DELTA_U, DOWN, LATENT, RANDOM, UP
from morfi.interventions.outcome import Share
from morfi.interventions.rivals import CHANGE, KNOWLEDGE
from morfi.report.findings.estimate import DIRECTIONS, QUESTIONS, Estimate
from morfi.report.findings.flips import Usual
from morfi.report.tables import percent
from morfi.statistics import Interval

GROUPS = {
    LATENT: "latents with a trend",
    CHANGE: "latents whose mean changes most",
    KNOWLEDGE: "latents that tell known from unknown",
    CONTROL: "control latents",
    RANDOM: "random directions",
    DELTA_U: "delta_u",
    DOWN: "rising latents that go best down",
    UP: "falling latents that go best up",
}
BEST = {LATENT: "the best latent", DELTA_U: "delta_u"}
USUAL = (
    "The most frequent answer is that of the steered model: one that takes the place of others gains where "
    "it is often right."
)
_OVER = {QUESTIONS: "questions", DIRECTIONS: "directions"}


def points(gain: float) -> str:
    """A gain in points, with its sign."""
    return f"{100 * gain:+.1f}"


def between(interval: Interval) -> str:
    """The interval of a gain, which goes no further than from all to nothing."""
    return f"{points(max(interval.low, -1.0))} to {points(min(interval.high, 1.0))}"


def estimated(found: Estimate | None) -> str:
    """A gain with its interval, and over what that is; a dash for None."""
    if found is None:
        return "-"
    return points(found.value) if found.interval is None else f"{points(found.value)} ({interval_of(found)})"


def interval_of(found: Estimate) -> str:
    """The interval of an estimate, and over what it is."""
    if found.interval is None:
        return "no interval"
    return f"{between(found.interval)} {_over(found)}"


def _over(found: Estimate) -> str:
    return f"over {_OVER.get(found.over, f'{len(found.values)} seeds')}"


@dataclass(frozen=True, slots=True)
class Column:
    """Estimates one below the other: what most of their intervals are over, said once, and the cells."""

    over: str
    cells: tuple[str, ...]

    def headed(self, name: str) -> str:
        """The heading of the column."""
        return f"{name} (95 % interval {self.over})" if self.over else name


def column(found: Sequence[Estimate | None]) -> Column:
    """Gains with their intervals; a cell whose interval is over something else than most says so."""
    counts = Counter(_over(one) for one in found if one is not None and one.interval is not None)
    over = counts.most_common(1)[0][0] if counts else ""
    cells = (estimated(one) for one in found)
    return Column(over, tuple(cell.replace(f" {over})", ")") if over else cell for cell in cells))


def usual(found: Usual) -> str:
    """The most frequent answer with its share steered, and before."""
    return f"{found.answer or '(none)'}, {percent(found.share)}; before {percent(found.before)}"


def share(found: Share) -> str:
    """A share with its interval and n."""
    if found.share is None:
        return "- (n 0)"
    low, high = 100 * found.interval.low, 100 * found.interval.high
    return f"{percent(found.share)} ({low:.0f} to {high:.0f}, n {found.n})"
