"""The conditions of a series as `morfi conditions check` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from morfi.checkpoints import Checkpoint
from morfi.checkpoints.adapters import WEIGHTS
from morfi.checkpoints.weights import open_model_weights
from morfi.conditions.series import Series


@dataclass(frozen=True, slots=True)
class ConditionFiles:
    """A condition, the `kind` of its checkpoint (adapter or model) and the size of its weights."""

    name: str
    level: float
    seed: int
    epochs: str
    kind: str
    sha256: str
    n_bytes: int
    path: str


def files_of(series: Series) -> list[ConditionFiles]:
    """The conditions of `series`, in its order, without the base model."""
    found = []
    for condition, member in series.members.items():
        checkpoint = series.open(condition)
        found.append(
            ConditionFiles(
                name=checkpoint.name,
                level=condition.level,
                seed=condition.seed,
                epochs=condition.epoch_setting,
                kind="model" if checkpoint.adapter_dir is None else "adapter",
                sha256=checkpoint.sha256,
                n_bytes=sum(path.stat().st_size for path in _weights(checkpoint)),
                path=member.path,
            )
        )
    return found


def _weights(checkpoint: Checkpoint) -> list[Path]:
    """The files of the weights."""
    if checkpoint.adapter_dir is not None:
        return [checkpoint.adapter_dir / WEIGHTS]
    return list(open_model_weights(checkpoint.model_dir).shards())
