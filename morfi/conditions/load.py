"""Series by name: of a train run, with the runs that it comes from, or of a TOML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints import resolve
from morfi.conditions.condition import condition_of
from morfi.conditions.file import open_series
from morfi.conditions.levels import SHARE_UNKNOWN
from morfi.conditions.series import Lineage, Member, Series
from morfi.errors import InputError
from morfi.runs.settings import settings_of
from morfi.store.records import RunKind
from morfi.terminal import Progress
from morfi.training.alike import same_weights
from morfi.training.config import TrainRun
from morfi.training.mixtures import MixConfig

if TYPE_CHECKING:
    from morfi.store import Store


def names_file(ckpts: str) -> bool:
    """Whether the checkpoints are those of a TOML file, not of a train run."""
    return ckpts.endswith(".toml") or os.path.isfile(ckpts)


def load_series(
    ckpts: str, store: Store, dtype: str | None, progress: Progress, *, sha256: str | None = None
) -> Series:
    """The series that `ckpts` names: a TOML file, or a train run.

    Raises InputError where it is missing or not as it was: for a file, where its `sha256` is another.
    """
    if not names_file(ckpts):
        return _trained(ckpts, store, dtype, progress)
    series = open_series(Path(ckpts), dtype, progress.phase)
    if sha256 not in (None, series.sha256):
        raise InputError(
            f"{ckpts} names other checkpoints than when it was captured; bring them back, or capture again"
        )
    return series


def _trained(run_id: str, store: Store, dtype: str | None, progress: Progress) -> Series:
    """The series of the train run `run_id`."""
    train = store.run_of_kind(run_id, RunKind.TRAIN)
    mix = store.run_of_kind(settings_of(train, TrainRun).mix_run, RunKind.MIX)
    split = store.run_of_kind(settings_of(mix, MixConfig).split_run, RunKind.SPLIT)
    rows = store.checkpoints(train.run_id)
    if not rows:
        raise InputError(f"{train.run_id} has no checkpoints yet; run `morfi train` to its end")
    base = resolve(train.ckpt, dtype=dtype, say=progress.phase)
    if base.sha256 != train.ckpt_sha256:
        raise InputError(
            f"{train.ckpt} is not the model that {train.run_id} was trained on: its sha256 is "
            f"{base.sha256[:16]}, expected {train.ckpt_sha256[:16]}; bring back that model"
        )
    for line in same_weights(rows):
        progress.phase(line)
    members = {condition_of(row): Member(row.path, row.adapter_sha256, row.manifest) for row in rows}
    return Series(train.run_id, SHARE_UNKNOWN, base, members, Lineage(train, mix, split))
