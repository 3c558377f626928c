"""The runs of one experiment: what a run builds on, back to the question of what the model knew."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.latents.capture import CaptureRun
from morfi.latents.find import FindRun
from morfi.runs.settings import settings_of
from morfi.store.records import EVERY, RunKind, RunRecord
from morfi.training.config import TrainRun
from morfi.training.mixtures import MixConfig

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Chain:
    """The runs of an experiment, by command; None where it has none, or not yet."""

    split: RunRecord | None = None
    mix: RunRecord | None = None
    train: RunRecord | None = None
    sweep: RunRecord | None = None
    capture: RunRecord | None = None
    find: RunRecord | None = None
    steer: RunRecord | None = None

    @property
    def runs(self) -> list[RunRecord]:
        """The runs in the order of their commands."""
        return [run for one in fields(self) if (run := getattr(self, one.name)) is not None]

    @property
    def last(self) -> RunRecord:
        """The run that builds on all others."""
        return self.runs[-1]


def chain_of(store: Store, run_id: str) -> Chain:
    """The experiment that ends with a run; `run_id` as in `Store.run`.

    A sweep is nothing that later runs build on: it is the newest of the same checkpoints. Raises InputError
    for a run that is no part of an experiment.
    """
    run = store.run(run_id)
    found: dict[str, RunRecord] = {}
    if run.kind not in {one.name for one in fields(Chain)}:
        raise InputError(
            f"{run.run_id} is a run of `morfi {run.kind}`, which is no part of an experiment; give one of "
            "`morfi steer`, or of what comes before it"
        )
    before: RunRecord | None = run
    while before is not None:
        found[before.kind] = before
        before = _before(store, before)
    ckpts = _series(found)
    if RunKind.SWEEP not in found and ckpts is not None:
        swept = [one.run_id for one in store.runs(EVERY, (RunKind.SWEEP,)) if one.status == "done"]
        same = [one for one in map(store.run, swept) if one.config["ckpts"] == ckpts]
        found |= {RunKind.SWEEP: same[0]} if same else {}
    return Chain(**{str(kind): one for kind, one in found.items()})


def _before(store: Store, run: RunRecord) -> RunRecord | None:
    """The run that `run` was made from; None for the first, and for checkpoints of one's own."""
    match run.kind:
        case RunKind.STEER:
            return store.run(settings_of(run, SteerRun).latents)
        case RunKind.FIND:
            return store.run(settings_of(run, FindRun).activations)
        case RunKind.CAPTURE | RunKind.SWEEP:
            train = run.config["ckpts"] if run.config["split_run"] is not None else None
            return None if train is None else store.run(train)
        case RunKind.TRAIN:
            return store.run(settings_of(run, TrainRun).mix_run)
        case RunKind.MIX:
            return store.run(settings_of(run, MixConfig).split_run)
    return None


def _series(found: dict[str, RunRecord]) -> str | None:
    """The checkpoints of an experiment, as its runs name them."""
    if RunKind.CAPTURE in found:
        return settings_of(found[RunKind.CAPTURE], CaptureRun).ckpts
    return found[RunKind.TRAIN].run_id if RunKind.TRAIN in found else None
