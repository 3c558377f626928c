"""An experiment: a train run with the runs and the base model that it comes from, and its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints import Checkpoint, resolve, resolve_unmerged
from morfi.conditions.condition import BASE, AnyCondition, BaseModel, Condition, condition_of
from morfi.errors import InputError
from morfi.questions import QuestionSet
from morfi.runs.settings import settings_of
from morfi.store.records import CheckpointRow, RunKind, RunRecord
from morfi.terminal import Progress
from morfi.training import load_manifest
from morfi.training.config import TrainRun
from morfi.training.mixtures import MixConfig

if TYPE_CHECKING:
    from morfi.store import Store

_NAME = re.compile(r"M_(\d+)")


@dataclass(frozen=True, slots=True)
class Experiment:
    """A train run, what it builds on, and its checkpoints in order of level, seed and epoch."""

    train: RunRecord
    mix: RunRecord
    split: RunRecord
    base: Checkpoint
    trained: Mapping[Condition, CheckpointRow]

    @property
    def conditions(self) -> tuple[AnyCondition, ...]:
        """The base model, then what was trained."""
        return (BASE, *self.trained)

    @property
    def adapters(self) -> list[tuple[int, int, str, str]]:
        """Level, seed, epoch setting and adapter sha256 of what was trained, for a run's fingerprint."""
        return [(row.level, row.seed, row.epoch_setting, row.adapter_sha256) for row in self.trained.values()]

    @property
    def bos(self) -> str:
        """The value of --bos for `morfi split`: training, and all that asks its checkpoints, keep to it."""
        return self.split.asked.bos or "auto"

    @property
    def data(self) -> QuestionSet:
        """The name and sha256 of the questions, without the questions: the store has those."""
        return QuestionSet(self.split.data, self.split.data_sha256, {})

    def open(self, condition: AnyCondition) -> Checkpoint:
        """The checkpoint of a condition; raises InputError where its files are not what was trained."""
        if isinstance(condition, BaseModel):
            return self.base
        row = self.trained[condition]
        folder = Path(row.path)
        if load_manifest(folder) != row.manifest:
            raise InputError(f"{folder} holds another checkpoint than the one that was trained; restore it")
        checkpoint = resolve_unmerged(row.path, base=self.base)
        if checkpoint.adapter_sha256 != row.adapter_sha256:
            raise InputError(f"{folder}: the adapter is not what it was after its training; copy it again")
        return replace(checkpoint, name=f"{folder.parent.name}/{folder.name}")

    def open_named(self, name: str, epochs: str, seed: int) -> Checkpoint:
        """The checkpoint called `name`: M_100 of this experiment, "base", or the folder of a LoRA adapter.

        M_100 is the one of level 100, epoch setting `epochs` and training seed `seed`. Raises InputError for
        a name that is none of these, and for files that are not as they were trained.
        """
        if name == BASE.id:
            return self.base
        matched = _NAME.fullmatch(name)
        if matched is None:
            if not Path(name).expanduser().is_dir():
                raise InputError(
                    f'"{name}" is not a checkpoint of {self.train.run_id}; give '
                    f'{self._listed(epochs, seed)}, "{BASE.id}", or the folder of a LoRA adapter'
                )
            return resolve_unmerged(name, base=self.base)
        own = [one for one in self._of(epochs, seed) if one.level == int(matched[1])]
        if not own:
            raise InputError(
                f"{self.train.run_id} has no {name} of epoch setting {epochs} and seed {seed}; it has "
                f"{self._listed(epochs, seed)}"
            )
        return replace(self.open(own[0]), name=name)

    def lowest(self, epochs: str, seed: int) -> Condition:
        """The condition of the lowest level; raises InputError where there is none."""
        found = self._of(epochs, seed)
        if not found:
            raise InputError(
                f"{self.train.run_id} has no checkpoints of epoch setting {epochs} and seed {seed}; give "
                "--epochs and --train-seed of those that it has"
            )
        return min(found, key=lambda one: one.level)

    def _of(self, epochs: str, seed: int) -> list[Condition]:
        return [one for one in self.trained if (one.epoch_setting, one.seed) == (epochs, seed)]

    def _listed(self, epochs: str, seed: int) -> str:
        names = [one.name for one in self._of(epochs, seed)]
        return ", ".join(names) or f"nothing of epoch setting {epochs} and seed {seed}"


def load_experiment(run_id: str, store: Store, dtype: str | None, progress: Progress) -> Experiment:
    """The experiment of the train run `run_id`; raises InputError where it is missing or not as it was."""
    train = store.run_of_kind(run_id, RunKind.TRAIN)
    mix = store.run_of_kind(settings_of(train, TrainRun).mix_run, RunKind.MIX)
    split = store.run_of_kind(settings_of(mix, MixConfig).split_run, RunKind.SPLIT)
    trained = {condition_of(row): row for row in store.checkpoints(train.run_id)}
    if not trained:
        raise InputError(f"{train.run_id} has no checkpoints yet; run `morfi train` to its end")
    base = resolve(train.ckpt, dtype=dtype, say=progress.phase)
    if base.sha256 != train.ckpt_sha256:
        raise InputError(
            f"{train.ckpt} is not the model that {train.run_id} was trained on: its sha256 is "
            f"{base.sha256[:16]}, expected {train.ckpt_sha256[:16]}; bring back that model"
        )
    return Experiment(train, mix, split, base, trained)
