"""Levels, the numbers by which a series is ordered, and the property that they are of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from morfi.store.records import RunRecord, exact


@dataclass(frozen=True, slots=True)
class Property:
    """What differs between the checkpoints of a series, with its unit; `limits` are the ends of its scale."""

    name: str
    unit: str | None = None
    limits: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """The words of an axis, such as "share of Unknown in training (%)"."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def shown(self, level: float) -> str:
        """A level with its unit, such as "50 %"."""
        return f"{exact(level)} {self.unit}" if self.unit else f"{exact(level)}"

    def scale(self, levels: Iterable[float]) -> tuple[float, float]:
        """The ends of an axis for these levels; never the same number."""
        low, high = self.limits or (min(levels), max(levels))
        return (low, high) if low < high else (low - 1, high + 1)


EPOCHS = Property("epochs of training")  # of checkpoints of one level
NOT_INDEPENDENT = "checkpoints of one training: not independent trainings"
SHARE_UNKNOWN = Property("share of Unknown in training", "%", (0, 100))  # of what `morfi train` makes


def varied_in(run: RunRecord) -> Property:
    """The property whose levels a run goes by."""
    name, unit = run.config["property"], run.config["unit"]
    return SHARE_UNKNOWN if (name, unit) == (SHARE_UNKNOWN.name, SHARE_UNKNOWN.unit) else Property(name, unit)
