"""Which answers of a steer run were right, and what follows from them: the strength of each direction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

N_HALVINGS = 3


class Answerer(StrEnum):
    """What answers, `SteeredRow.served`: what is steered, what its gains are held against, the base model."""

    CHECKPOINT = "checkpoint"
    REFERENCE = "reference"
    BASE = "base"


@dataclass(frozen=True, slots=True)
class Arm:
    """A direction, by name, at one strength: alpha, for clamp the latent's value, else 0."""

    direction: str
    alpha: float


UNSTEERED = Arm("", 0.0)


@dataclass(slots=True)
class Verdicts:
    """Whether each answer was right, by what answered, how it was steered and question id."""

    right: dict[tuple[str, Arm], dict[str, bool]] = field(default_factory=dict)

    def add(self, served: str, arm: Arm, question_id: str, *, correct: bool) -> None:
        """Takes note of one answer."""
        self.right.setdefault((served, arm), {})[question_id] = correct

    def of(self, arm: Arm, served: str = Answerer.CHECKPOINT) -> Mapping[str, bool]:
        """The verdicts of one arm, by question id."""
        return self.right.get((served, arm), {})

    def n_right(self, arm: Arm, question_ids: Iterable[str]) -> int:
        """How many of these questions the steered checkpoint answered right."""
        found = self.of(arm)
        return sum(found[question_id] for question_id in question_ids)


def read_verdicts(rows: pa.Table) -> Verdicts:
    """The verdicts in `Store.steered`."""
    found = Verdicts()
    columns = (rows[name].to_pylist() for name in ("served", "direction", "alpha", "question_id", "correct"))
    for served, direction, alpha, question_id, correct in zip(*columns, strict=True):
        found.add(served, Arm(direction, alpha), question_id, correct=correct)
    return found


def best_arms(verdicts: Verdicts, arms: Sequence[Arm], question_ids: Sequence[str]) -> dict[str, Arm]:
    """The best strength of each direction, by name, among its arms that answered all these questions.

    Of equally good ones the smallest, then the one that was named first.
    """
    whole = [arm for arm in arms if all(one in verdicts.of(arm) for one in question_ids)]
    ranked = ranked_arms(verdicts, whole, question_ids)
    return {arm.direction: arm for arm in reversed(ranked)}


def ranked_arms(verdicts: Verdicts, arms: Sequence[Arm], question_ids: Sequence[str]) -> list[Arm]:
    """The arms by falling number of right answers; of equal ones the smaller strength comes first."""
    return sorted(arms, key=lambda arm: (-verdicts.n_right(arm, question_ids), abs(arm.alpha)))


def survivors(verdicts: Verdicts, arms: Sequence[Arm], question_ids: Sequence[str]) -> list[Arm]:
    """The arms that stay in a halving, in their order: each direction's best, then the best others.

    Half of them stay, rounded up, or one for each direction where that is more.
    """
    ranked = ranked_arms(verdicts, arms, question_ids)
    first = {arm.direction: arm for arm in reversed(ranked)}
    rest = [arm for arm in ranked if first[arm.direction] != arm]
    kept = {*first.values(), *rest[: n_surviving(len(arms), len(first)) - len(first)]}
    return [arm for arm in arms if arm in kept]


def n_surviving(n_arms: int, n_directions: int) -> int:
    """How many arms stay of so many, in one halving."""
    return max(n_directions, math.ceil(n_arms / 2))


def rung_sizes(n_questions: int) -> list[int]:
    """How many questions each round of a successive halving has asked when it ends, rising to all."""
    sizes = [math.ceil(n_questions / 2**left) for left in range(N_HALVINGS, -1, -1)]
    return list(dict.fromkeys(sizes))
