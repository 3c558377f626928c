"""The three checkpoints of a steer run: what is steered, its reference, and the base model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from morfi.checkpoints import Checkpoint, resolve_unmerged
from morfi.conditions.trained import Trained, open_checkpoint
from morfi.errors import InputError
from morfi.store.records import CheckpointRow

BASE = "base"
_NAME = re.compile(r"M_(\d+)")


def open_named(name: str, trained: Trained, epochs: str, seed: int) -> Checkpoint:
    """The checkpoint called `name`: "M_100" of the train run, "base", or a LoRA adapter's folder.

    M_100 is the one of level 100, epoch setting `epochs` and training seed `seed`. Raises InputError for a
    name that is none of these, and for files that are not as they were trained.
    """
    if name == BASE:
        return trained.base
    matched = _NAME.fullmatch(name)
    if matched is None:
        if not Path(name).expanduser().is_dir():
            raise InputError(
                f'"{name}" is no checkpoint of {trained.train.run_id}; give '
                f'{_listed(trained, epochs, seed)}, "{BASE}", or the folder of a LoRA adapter'
            )
        return resolve_unmerged(name, base=trained.base)
    own = [row for row in _of(trained, epochs, seed) if row.level == int(matched[1])]
    if not own:
        raise InputError(
            f"{trained.train.run_id} has no {name} of epoch setting {epochs} and seed {seed}; it has "
            f"{_listed(trained, epochs, seed)}"
        )
    return replace(open_checkpoint(own[0], trained.base), name=name)


def lowest(trained: Trained, epochs: str, seed: int) -> str:
    """The name of the checkpoint with the lowest level; raises InputError where there is none."""
    found = _of(trained, epochs, seed)
    if not found:
        raise InputError(
            f"{trained.train.run_id} has no checkpoints of epoch setting {epochs} and seed {seed}; give "
            "--epochs and --train-seed of those that it has"
        )
    return f"M_{min(row.level for row in found)}"


def _of(trained: Trained, epochs: str, seed: int) -> Sequence[CheckpointRow]:
    return [row for row in trained.checkpoints if (row.epoch_setting, row.seed) == (epochs, seed)]


def _listed(trained: Trained, epochs: str, seed: int) -> str:
    names = [f"M_{row.level}" for row in _of(trained, epochs, seed)]
    return ", ".join(names) or f"nothing of epoch setting {epochs} and seed {seed}"
