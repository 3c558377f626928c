"""The lines of a report: what was looked at, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ParamSpec

from morfi.errors import InputError, MorfiError, reason_of

P = ParamSpec("P")


class Outcome(StrEnum):
    """How a check ended."""

    HOLDS = "holds"
    DIFFERS = "differs"
    UNCHECKED = "cannot be checked"
    MEASURED = "measured"  # a figure that nothing is expected of


@dataclass(frozen=True, slots=True)
class Line:
    """One check: `says` by how much it holds or differs, or why it cannot be checked."""

    name: str
    outcome: Outcome
    says: str
    figures: Mapping[str, float] = field(default_factory=dict)


def unchecked(name: str, reason: str) -> Line:
    """The line of a check that could not be made."""
    return Line(name, Outcome.UNCHECKED, f"because {reason}")


def attempt(name: str, make: Callable[P, Line], *args: P.args, **more: P.kwargs) -> Line:
    """The line that `make` gives; where the engine refuses or fails, one that says so under `name`."""
    try:
        return make(*args, **more)
    except InputError as error:
        return unchecked(name, f"the engine refuses it: {reason_of(error)}")
    except (MorfiError, RuntimeError) as error:  # vLLM's own, which after a step that failed says no more
        return Line(name, Outcome.DIFFERS, f"the engine failed: {error}")
