"""A series: a base model and checkpoints of it, ordered by the level of one property."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint, resolve_live, resolve_unmerged
from morfi.conditions.condition import BASE, AnyCondition, BaseModel, Condition
from morfi.conditions.levels import Property
from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.store.records import RunRecord
from morfi.training import load_manifest

_NAME = re.compile(r"M_(.+)")


@dataclass(frozen=True, slots=True)
class Lineage:
    """The runs that a training comes from: what its base model knew, and what each level was trained on."""

    train: RunRecord
    mix: RunRecord
    split: RunRecord

    @property
    def bos(self) -> str:
        """The value of --bos for `morfi split`: training, and all that asks its checkpoints, keep to it."""
        return self.split.asked.bos or "auto"


@dataclass(frozen=True, slots=True)
class Member:
    """What a condition is loaded from: an adapter, whose own sha256 is `sha256`, or a whole model.

    `path` is a folder or a hub id. `manifest` is what `morfi train` wrote beside the adapter; `name` is what
    the checkpoint is called, where anyone called it anything.
    """

    path: str
    sha256: str
    manifest: Mapping[str, Any] | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A base model and its checkpoints, in order of level, seed and epochs.

    `source` is what a run that builds on it is given: the id of a train run, whose `lineage` it then has, or
    the path of a TOML file.
    """

    source: str
    varied: Property
    base: Checkpoint
    members: Mapping[Condition, Member]
    lineage: Lineage | None

    @property
    def conditions(self) -> tuple[AnyCondition, ...]:
        """The base model, then its checkpoints."""
        return (BASE, *self.members)

    @property
    def content(self) -> list[tuple[float, int, str, str]]:
        """Level, seed, epoch setting and sha256 of each checkpoint, for a run's fingerprint."""
        return [(one.level, one.seed, one.epoch_setting, own.sha256) for one, own in self.members.items()]

    def content_of(self, condition: AnyCondition) -> str:
        """The sha256 of what a condition is loaded from."""
        return self.base.sha256 if isinstance(condition, BaseModel) else self.members[condition].sha256

    @property
    def sha256(self) -> str:
        """The hash of the base model and of all checkpoints with their conditions."""
        return canonical_sha256([self.base.sha256, *self.content])

    @property
    def bos(self) -> str:
        """The value of --bos with which its checkpoints are asked."""
        return self.lineage.bos if self.lineage is not None else "auto"

    def open(self, condition: AnyCondition) -> Checkpoint:
        """The checkpoint of a condition; raises InputError where its files are not what they were."""
        if isinstance(condition, BaseModel):
            return self.base
        member = self.members[condition]
        if member.manifest is not None:
            return self._open_trained(Path(member.path), member)
        checkpoint = resolve_live(member.path, base=self.base)
        if (checkpoint.adapter_sha256 or checkpoint.sha256) != member.sha256:
            raise InputError(f"{member.path} is not what it was when {self.source} was read; copy it again")
        return replace(checkpoint, name=member.name or checkpoint.name)

    def _open_trained(self, folder: Path, member: Member) -> Checkpoint:
        """The checkpoint that `morfi train` left in `folder`."""
        if load_manifest(folder) != member.manifest:
            raise InputError(f"{folder} holds another checkpoint than the one that was trained; restore it")
        checkpoint = resolve_unmerged(member.path, base=self.base)
        if checkpoint.adapter_sha256 != member.sha256:
            raise InputError(f"{folder}: the adapter is not what it was after its training; copy it again")
        return replace(checkpoint, name=f"{folder.parent.name}/{folder.name}")

    def open_named(self, name: str, epochs: str, seed: int) -> Checkpoint:
        """The checkpoint called `name`: M_100 of this series, "base", or the folder of a LoRA adapter.

        M_100 is the one of level 100, epoch setting `epochs` and training seed `seed`. Raises InputError for
        a name that is none of these, and for files that are not as they were.
        """
        if name == BASE.id:
            return self.base
        level = level_named(name)
        if level is None:
            if not Path(name).expanduser().is_dir():
                raise InputError(
                    f'"{name}" is not a checkpoint of {self.source}; give '
                    f'{self._listed(epochs, seed)}, "{BASE.id}", or the folder of a LoRA adapter'
                )
            return resolve_unmerged(name, base=self.base)
        own = [one for one in self._of(epochs, seed) if one.level == level]
        if not own:
            raise InputError(
                f"{self.source} has no {name} of epoch setting {epochs} and seed {seed}; it has "
                f"{self._listed(epochs, seed)}"
            )
        return replace(self.open(own[0]), name=name)

    def lowest(self, epochs: str, seed: int) -> Condition:
        """The condition of the lowest level; raises InputError where there is none."""
        found = self._of(epochs, seed)
        if not found:
            raise InputError(
                f"{self.source} has no checkpoints of epoch setting {epochs} and seed {seed}; give "
                "--epochs and --train-seed of those that it has"
            )
        return min(found, key=lambda one: one.level)

    def _of(self, epochs: str, seed: int) -> list[Condition]:
        return [one for one in self.members if (one.epoch_setting, one.seed) == (epochs, seed)]

    def _listed(self, epochs: str, seed: int) -> str:
        names = [one.name for one in self._of(epochs, seed)]
        return ", ".join(names) or f"nothing of epoch setting {epochs} and seed {seed}"


def level_named(name: str) -> float | None:
    """The level in a name such as M_100; None where there is none."""
    matched = _NAME.fullmatch(name)
    try:
        level = float(matched[1]) if matched else math.nan
    except ValueError:
        return None
    return level if math.isfinite(level) else None
