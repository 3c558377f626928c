"""One number of an experiment with its interval: over trainings where there are several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from morfi.statistics import Interval, spread_interval

SEEDS, QUESTIONS, DIRECTIONS = "seeds", "questions", "directions"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `values`, one for each seed, with its 95 % interval over `over`, if there is one."""

    values: tuple[float, ...]
    interval: Interval | None
    over: str

    @property
    def value(self) -> float:
        """The mean over seeds."""
        return fmean(self.values)


def estimate(
    values: Sequence[float], intervals: Sequence[Interval | None], over: str = QUESTIONS
) -> Estimate:
    """The mean of one quantity over seeds; `intervals` are each seed's own, over `over`.

    Student's t interval over seeds; of one seed, and of seeds that are all alike, the widest of their own.
    """
    spread = spread_interval(values)
    if spread is not None:
        return Estimate(tuple(values), spread, SEEDS)
    own = [one for one in intervals if one is not None]
    widest = Interval(min(one.low for one in own), max(one.high for one in own)) if own else None
    return Estimate(tuple(values), widest, over)
