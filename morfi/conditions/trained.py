"""The checkpoints that a train run made, with the runs and the base model that they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints import Checkpoint, resolve, resolve_unmerged
from morfi.errors import InputError
from morfi.questions import QuestionSet
from morfi.store.records import CheckpointRow, RunRecord
from morfi.terminal import Progress
from morfi.training import load_manifest

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Trained:
    """A train run, what it builds on, and its checkpoints in order of level, seed and epoch."""

    train: RunRecord
    mix: RunRecord
    split: RunRecord
    base: Checkpoint
    checkpoints: tuple[CheckpointRow, ...]

    @property
    def bos(self) -> str:
        """What --bos was for `morfi split`: training, and all that asks its checkpoints, keep to it."""
        return str(self.split.config.get("bos", "auto"))

    @property
    def data(self) -> QuestionSet:
        """The name and sha256 of the questions, without the questions: the store has those."""
        return QuestionSet(self.split.data, self.split.data_sha256, {})


def load_trained(run_id: str, store: Store, dtype: str | None, progress: Progress) -> Trained:
    """What the train run `run_id` made; raises InputError where it is missing or not as it was."""
    train = store.run_of_kind(run_id, "train")
    mix = store.run_of_kind(train.config["mix_run"], "mix")
    split = store.run_of_kind(mix.config["split_run"], "split")
    checkpoints = tuple(store.checkpoints(train.run_id))
    if not checkpoints:
        raise InputError(f"{train.run_id} has no checkpoints yet; run `morfi train` to its end")
    base = resolve(train.ckpt, dtype=dtype, progress=progress.phase)
    if base.sha256 != train.ckpt_sha256:
        raise InputError(
            f"{train.ckpt} is not the model that {train.run_id} was trained on: its sha256 is "
            f"{base.sha256[:16]}, expected {train.ckpt_sha256[:16]}; bring back that model"
        )
    return Trained(train, mix, split, base, checkpoints)


def open_checkpoint(row: CheckpointRow, base: Checkpoint) -> Checkpoint:
    """The trained checkpoint of `row`, if its files are what they were when it was stored."""
    manifest = load_manifest(Path(row.path))
    if manifest != row.manifest:
        raise InputError(f"{row.path} holds another checkpoint than the one that was trained; restore it")
    checkpoint = resolve_unmerged(row.path, base=base)
    if checkpoint.adapter_sha256 != row.adapter_sha256:
        raise InputError(f"{row.path}: the adapter is not what it was after its training; copy it again")
    folder = Path(row.path)
    return replace(checkpoint, name=f"{folder.parent.name}/{folder.name}")
