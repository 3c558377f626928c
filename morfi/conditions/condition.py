"""The one name of a checkpoint of a series, in messages, tables, files and over HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import overload

from morfi.store.records import CheckpointRow, ConditionRow, MeasuredRow


@dataclass(frozen=True, slots=True)
class Condition:
    """A checkpoint of a series: of `level`, trained with `seed` to an epoch setting (see `CheckpointRow`).

    `epoch` is the setting's real one, where it is known, which tells no two conditions apart.
    """

    level: float
    seed: int
    epoch_setting: str
    epoch: int | None = field(compare=False)

    @property
    def id(self) -> str:
        """The id of a client or a folder, such as level-100-seed-0-epoch-10."""
        return f"level-{self.level}-seed-{self.seed}-epoch-{self.epoch_setting}"

    @property
    def name(self) -> str:
        """The name that all seeds and epochs of a level share, such as M_100."""
        return f"M_{self.level}"

    @property
    def label(self) -> str:
        """The words of messages, such as "M_100, seed 0, epoch 10"."""
        return f"{self.name}, seed {self.seed}, epoch {self.epoch_setting}"


@dataclass(frozen=True, slots=True)
class BaseModel:
    """The model that the checkpoints of a series were trained from."""

    level: None = None
    seed: None = None
    epoch_setting: None = None
    epoch: None = None

    @property
    def id(self) -> str:
        """As a condition's."""
        return "base"

    @property
    def name(self) -> str:
        """As a condition's."""
        return "base model"

    @property
    def label(self) -> str:
        """As a condition's."""
        return self.name


BASE = BaseModel()
AnyCondition = BaseModel | Condition


def in_order(settings: Iterable[str]) -> list[str]:
    """Epoch settings without repeats: numbers first, by size, then names."""
    return sorted(
        set(settings), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )


@overload
def condition_of(row: CheckpointRow | ConditionRow) -> Condition: ...
@overload
def condition_of(row: MeasuredRow) -> AnyCondition: ...
def condition_of(row: CheckpointRow | ConditionRow | MeasuredRow) -> AnyCondition:
    """The condition that a row of the store is about."""
    if row.level is None or row.seed is None or row.epoch_setting is None:
        return BASE
    return Condition(row.level, row.seed, row.epoch_setting, row.epoch)
