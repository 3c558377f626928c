"""Steer runs of the replicate trainings of one checkpoint: alike in all but the training's seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from morfi.store.records import EVERY, RunKind, RunRecord

if TYPE_CHECKING:
    from morfi.store import Store

_OF_SEED = ("train_seed", "median_norm")  # settings that another training changes


def replicates(store: Store, run: RunRecord) -> list[RunRecord]:
    """The steer run with all whole ones that differ from it in the training's seed alone, by seed."""
    found = {run.config["train_seed"]: run}
    for one in store.runs(EVERY, (RunKind.STEER,)):
        if one.status == "done":
            other = store.run(one.run_id)
            if _but_seed(other) == _but_seed(run):
                found.setdefault(other.config["train_seed"], other)
    return [found[seed] for seed in sorted(found)]


def _but_seed(run: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in run.config.items() if key not in _OF_SEED}
