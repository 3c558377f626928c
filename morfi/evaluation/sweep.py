"""Closed-book accuracy of every checkpoint of a series through one live engine: `morfi sweep`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from morfi.checkpoints import Checkpoint
from morfi.conditions.condition import AnyCondition
from morfi.conditions.live import Serving
from morfi.engine.protocol import Engine, StartEngine
from morfi.engine.several import Done, share_out
from morfi.errors import MorfiError
from morfi.evaluation.sweep_plan import Plan, SweepConfig, prepare_sweep
from morfi.runs.answering import (
    Batch,
    Completed,
    Task,
    ask,
    batches_without,
    fingerprint_of,
    keep,
    life_of,
)
from morfi.runs.life import Attempt, Life, Ready, new_run
from morfi.store.records import RunKind, RunRecord, SweepRow
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class SweepResult:
    """The run, and which checkpoints could not be asked and why."""

    run_id: str
    failures: tuple[str, ...]


def run_sweep(
    config: SweepConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> SweepResult:
    """Asks the base model and every checkpoint of `config` the questions of one split; stores the answers.

    A train run's checkpoints are asked the Unknown training questions of their own mixture as well. Goes on
    with the newest run of the same checkpoints and questions, unless `new`. A checkpoint that cannot be
    served is left out and named in the result; the others finish.
    """
    ready = ready_sweep(config, store, start_engine, progress, new=new, command=command)
    return SweepResult(ready.result, tuple(ready.finish()))


def ready_sweep(
    config: SweepConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> Ready:
    """The work of `run_sweep`; nothing is asked or stored before."""
    plan = prepare_sweep(config, store, progress)
    life = Life(
        _record(plan),
        store,
        progress,
        command,
        again="the same command goes on at the first checkpoint that is missing",
    ).resumed(None if new else "auto")
    done = {row.position for row in store.sweep(life.run.run_id)} if store.path.exists() else set()
    left = [place for place in enumerate(plan.series.conditions) if place[0] not in done]
    return Ready(life.run.run_id, partial(_ask_all, plan, left, life, start_engine) if left else None)


def _ask_all(
    plan: Plan, left: Sequence[tuple[int, AnyCondition]], life: Life, start_engine: StartEngine
) -> Sequence[str]:
    """Asks the checkpoints that are `left`, by position; returns which could not be asked and why."""
    store, progress = life.store, life.progress
    store.prepare()
    settings = plan.answering
    start = partial(
        start_engine,
        plan.series.base,
        context=plan.asked.context,
        seed=settings.seed,
        overrides=settings.engine,
    )
    with life.engine(start) as (engine, attempt), contextlib.ExitStack() as under_way:
        serving = Serving(plan.series.open, progress, plan.series.base)
        sweep = _Sweep(plan, life, engine, attempt, serving, under_way)
        progress.start(sum(len(plan.asked_of[condition.level]) for _, condition in left), 0, "answers")
        for done in share_out(engine, map(sweep.batches_of, left), sweep.ask, progress.phase):
            sweep.keep(done)
        attempt.fail(serving.failures)
    return serving.failures


def _record(plan: Plan) -> RunRecord:
    """The record of a sweep that begins now."""
    return new_run(
        RunKind.SWEEP,
        plan.series.base,
        plan.data,
        config=asdict(plan.config),
        fingerprint=plan.fingerprint,
        bos=plan.asked.bos,
        seed=plan.answering.seed,
        n_planned=len(plan.series.conditions),
        prompt=plan.asked.form,
        ckpt=plan.config.ckpts,
    )


@dataclass(slots=True, eq=False)
class _Asking:
    """A checkpoint that is being asked: its own run, and the places in the sweep that it stands at."""

    places: list[tuple[int, AnyCondition]]
    checkpoint: Checkpoint
    task: Task
    life: Life
    n_left: int  # batches
    began: float
    load_s: float = 0.0
    failed: MorfiError | None = None  # why it cannot be served
    attempt: Attempt | None = None  # from its first answers on
    ending: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


@dataclass(frozen=True, slots=True)
class _Unit:
    """A batch of a checkpoint's questions."""

    of: _Asking
    batch: Batch


@dataclass(frozen=True, slots=True)
class _Answers:
    """The answers to a batch, and the seconds that the engine took to load the checkpoint before."""

    load_s: float
    completed: Completed


@dataclass(slots=True)
class _Sweep:
    """One attempt at a sweep, with its live engine."""

    plan: Plan
    life: Life
    engine: Engine
    attempt: Attempt
    serving: Serving
    under_way: contextlib.ExitStack  # the attempts at the checkpoints' own runs
    asking: dict[str, _Asking] = field(default_factory=dict)  # by fingerprint

    def batches_of(self, place: tuple[int, AnyCondition]) -> Sequence[_Unit]:
        """What is missing of the answers of a checkpoint; where that is nothing, stores that it is done.

        A checkpoint that stands at several places is asked once.
        """
        condition = place[1]
        checkpoint = self.serving.opened(condition)
        if checkpoint is None:
            return ()
        task = _task(self.plan, condition, checkpoint)
        progress = self.life.progress
        if (same := self.asking.get(task.fingerprint)) is not None:
            if same.failed is not None:
                self.serving.fail(condition, same.failed)
                return ()
            same.places.append(place)
            progress.advance(task.n_answers)
            return ()
        store = self.life.store
        with store.together():
            life = life_of(task, store, _Silent(), self.life.command).resumed("auto")
            finished = store.finished(life.run.run_id)
            batches = batches_without(finished, task)
            asking = _Asking([place], checkpoint, task, life, len(batches), time.monotonic())
            if not batches:
                progress.advance(task.n_answers)
                self._end(asking)
                return ()
            store.check_free(life.run.run_id)
        progress.advance(len(finished))
        self.asking[task.fingerprint] = asking
        return [_Unit(asking, batch) for batch in batches]

    def ask(self, engine: Engine, unit: _Unit) -> _Answers | MorfiError | None:
        """The answers to a batch; why the checkpoint cannot be served, or None where that is known."""
        if unit.of.failed is not None:
            return None
        try:
            load_s = self.serving.load(engine, unit.of.checkpoint)
        except MorfiError as error:
            return error
        return _Answers(load_s, ask(engine, unit.batch, self.plan.answering, self.life.progress))

    def keep(self, done: Done[_Unit, _Answers | MorfiError | None]) -> None:
        """Stores the answers to a batch, and with the last one of a checkpoint that it is done."""
        asking, found = done.unit.of, done.result
        asking.n_left -= 1
        if isinstance(found, MorfiError) and asking.failed is None:
            asking.failed = found
            for _, condition in asking.places:
                self.serving.fail(condition, found)
        with self.life.store.together():
            if isinstance(found, _Answers):
                attempt = asking.attempt or self._begin(asking)
                asking.load_s = max(asking.load_s, found.load_s)
                batch = Done(done.unit.batch, found.completed)
                answers = keep(asking.life, attempt, self.plan.answering.match, batch)
                self.attempt.count(answers, found.completed.span)
            if not asking.n_left:
                del self.asking[asking.task.fingerprint]
                self._end(asking)

    def _begin(self, asking: _Asking) -> Attempt:
        """The attempt at the checkpoint's own run, which begins with its first answers."""
        attempt = asking.ending.enter_context(
            asking.life.attempt(
                started=asking.began, device=self.engine.device, settings=self.engine.settings
            )
        )
        asking.attempt = attempt
        self.under_way.push(asking.ending)
        return attempt

    def _end(self, asking: _Asking) -> None:
        """Ends the attempt at a checkpoint's own run, and says at each of its places that it is done."""
        if asking.failed is not None and asking.attempt is not None:
            asking.attempt.fail([f"{asking.places[0][1].label}: {asking.failed}"])
        asking.ending.close()
        if asking.failed is not None:
            return
        rows = [
            SweepRow(
                position=position,
                **asdict(condition),
                ckpt_sha256=asking.checkpoint.sha256,
                eval_run_id=asking.life.run.run_id,
                load_s=asking.load_s,
                attempt=self.attempt.number,
            )
            for position, condition in asking.places
        ]
        self.life.store.add(self.life.run.run_id, rows)


class _Silent:
    """Says and draws nothing: a sweep has one bar, and says itself what it does."""

    def phase(self, text: str) -> None: ...

    def start(self, n_total: int, n_done: int, unit: str) -> None: ...

    def advance(self, n: int) -> None: ...


def _task(plan: Plan, condition: AnyCondition, checkpoint: Checkpoint) -> Task:
    asked = plan.asked.of(plan.asked_of[condition.level])
    config = {**asdict(plan.answering), "ckpt": checkpoint.name, "shots": 0, "split": plan.config.split}
    return Task(
        kind=RunKind.SWEEP_EVAL,
        config=config,
        answering=plan.answering,
        checkpoint=checkpoint,
        data=plan.data,
        split_of=plan.split_of,
        prompted=asked,
        fingerprint=fingerprint_of(asdict(plan.answering), checkpoint, plan.data, asked.prompts),
        again="the same command",
    )
