"""The one name of a checkpoint of an experiment, in messages, tables, files and over HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import overload

from morfi.store.records import CheckpointRow, MeasuredRow


@dataclass(frozen=True, slots=True)
class Condition:
    """A model that an experiment trained: at `level`, with `seed`, to an epoch setting (see `CheckpointRow`).

    `epoch` is the setting's real one, which tells no two conditions apart.
    """

    level: int
    seed: int
    epoch_setting: str
    epoch: int = field(compare=False)

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
    """The model that an experiment trains, before it is trained."""

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


@overload
def condition_of(row: CheckpointRow) -> Condition: ...
@overload
def condition_of(row: MeasuredRow) -> AnyCondition: ...
def condition_of(row: CheckpointRow | MeasuredRow) -> AnyCondition:
    """The condition that a row of the store is about."""
    if row.level is None or row.seed is None or row.epoch_setting is None or row.epoch is None:
        return BASE
    return Condition(row.level, row.seed, row.epoch_setting, row.epoch)
