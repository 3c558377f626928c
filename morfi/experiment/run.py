"""Running the stages of an experiment one after the other: `morfi run`.

The store is all that remembers: a stage is done where the store holds a whole run of its fingerprint, which
its settings, its model, its questions and the runs that it builds on decide.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from morfi.device import free_memory
from morfi.engine.protocol import StartEngine
from morfi.errors import InputError, MorfiError, nearest
from morfi.experiment.check import check_settings
from morfi.experiment.keys import Keys, said_of
from morfi.experiment.known import Known
from morfi.experiment.stages import Settings, Stage, Surroundings, given_to, stages_of
from morfi.files import noting_sources
from morfi.interventions.replicates import replicates
from morfi.runs.life import Ready
from morfi.store.records import EVERY, RunKind
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.store.records import RunSummary

DONE, BEGUN, CHANGED, MISSING, WAITS = "done", "begun", "changed", "missing", "waits"
OpenProgress = Callable[[], AbstractContextManager[Progress]]
TakeOptions = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a stage, or how it stands.

    `state` is done; begun, a run that is not whole; changed, where the newest run of its command is of other
    settings; missing; or waits, on the stages before it. `result` is the id of its run, or an SAE's folder;
    `seconds` what all attempts at it took, and where none is known what its command took the last time;
    `is_new` is whether it was done now.
    """

    stage: str
    state: str
    result: str | None
    seconds: float | None
    is_new: bool = False


def run_experiment(
    settings: Settings,
    store: Store,
    start_engine: StartEngine,
    open_progress: OpenProgress,
    *,
    start_engines: StartEngine | None = None,
    command: str,
    take: TakeOptions = lambda given: given,
    begin: str | None = None,
    until: str | None = None,
    dry: bool = False,
) -> Iterator[Outcome]:
    """Runs the stages of `settings` from `begin` to `until`, and says of each how it ended.

    A stage whose run is whole is not run again, one that was interrupted goes on. With `begin` the stages
    before must be done; `dry` says how each stands and does nothing. `take` makes of the options of a stage
    what its command takes. Where `start_engines` is given, stages whose work can be shared out start their
    engines by it. Raises InputError where a stage is not there, FaultsError for all settings that
    cannot be, before the first stage that is not known to be done (`Known`), and MorfiError where one failed.
    """
    stages, known = _chosen(stages_of(settings), begin, until), Known(store)
    taken: Settings | None = None
    results: dict[str, str] = {}
    for number, (stage, is_asked) in enumerate(stages, 1):
        if not set(stage.takes.values()) & {one.name for one, _ in stages} <= set(results):
            yield Outcome(stage.name, WAITS, None, _before(store, stage))
            continue
        given = given_to(stage, settings, results)
        if (result := known.result(stage, given)) is not None:
            results[stage.name] = result
            yield _standing(store, stage, Ready(result, None))
            continue
        if taken is None:
            taken = {name: take(options) for name, options in settings.items()}
            with open_progress() as progress:
                check_settings(taken, [one for one, _ in stages], progress.phase)
        with open_progress() as progress, said_of(stage.name):
            progress.phase(f"stage {number} of {len(stages)}: {stage.name}")
            around = Surroundings(store, start_engine, start_engines or start_engine, Keys(progress), command)
            with noting_sources() as sources:
                ready = stage.ready(given_to(stage, taken, results), around)
            led = known.led(stage, given, sources)
            if dry and ready.work is not None:
                yield _standing(store, stage, ready)
                continue
            if ready.work is not None and not is_asked:
                raise InputError("this stage is not done; leave --from out, or begin with it")
            yield _standing(store, stage, ready) if ready.work is None else _worked(store, stage, ready)
            led.keep(ready.result)
            results[stage.name] = ready.result


def _worked(store: Store, stage: Stage, ready: Ready) -> Outcome:
    """The outcome of a stage's work; raises MorfiError where a part of it failed."""
    begun = time.monotonic()
    failures = ready.finish()
    free_memory()  # or the next stage would start with what this one no longer uses
    if failures:
        raise MorfiError(f"checkpoints that failed: {'; '.join(failures)}")
    outcome = replace(_standing(store, stage, replace(ready, work=None)), is_new=True)
    return outcome if outcome.seconds is not None else replace(outcome, seconds=time.monotonic() - begun)


def _chosen(stages: Sequence[Stage], begin: str | None, until: str | None) -> list[tuple[Stage, bool]]:
    """The stages to the last that is asked for, and whether each may work."""
    names = [stage.name for stage in stages]
    for option, name in (("from", begin), ("until", until)):
        if name is not None and name not in names:
            raise InputError(
                f'--{option} "{name}" is no stage of this experiment: {", ".join(names)}.'
                f"{nearest(name, names)}"
            )
    first = 0 if begin is None else names.index(begin)
    last = len(names) - 1 if until is None else names.index(until)
    if first > last:
        raise InputError(f"--from {begin} comes after --until {until}")
    return [(stage, place >= first) for place, stage in enumerate(stages[: last + 1])]


def _standing(store: Store, stage: Stage, ready: Ready) -> Outcome:
    """How a stage stands that can be made ready."""
    known = {one.run_id: one for one in _runs(store, stage)}
    own = known.get(ready.result)
    if ready.work is None:
        every = [ready.result]
        if stage.kind == RunKind.STEER:
            every = [one.run_id for one in replicates(store, store.run(ready.result))]
        seconds = None if own is None else sum(known[one].wall_s for one in every)
        return Outcome(stage.name, DONE, ready.result, seconds)
    before = _before(store, stage)
    if own is not None:
        return Outcome(stage.name, BEGUN, ready.result, before)
    return Outcome(stage.name, MISSING if before is None else CHANGED, None, before)


def _before(store: Store, stage: Stage) -> float | None:
    """What the newest whole run of a stage's command took, in seconds; None where there is none."""
    return next((one.wall_s for one in _runs(store, stage) if one.status == DONE), None)


def _runs(store: Store, stage: Stage) -> list[RunSummary]:
    """The runs of a stage's command, the newest first."""
    if stage.kind is None or not store.path.exists():
        return []
    return store.runs(EVERY, (stage.kind,))
