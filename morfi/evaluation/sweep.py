"""Closed-book accuracy of every checkpoint of a series through one live engine: `morfi sweep`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint
from morfi.conditions.condition import AnyCondition
from morfi.conditions.live import Serving
from morfi.engine.protocol import Completion, Engine, StartEngine
from morfi.evaluation.sweep_plan import Plan, SweepConfig, prepare_sweep
from morfi.runs.answering import Task, answer, fingerprint_of
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
    store, progress, run_id = life.store, life.progress, life.run.run_id
    store.prepare()
    settings = plan.answering
    start = partial(
        start_engine,
        plan.series.base,
        context=plan.asked.context,
        seed=settings.seed,
        overrides=settings.engine,
    )
    with life.engine(start) as (engine, attempt), contextlib.ExitStack() as ending:
        held = _HoldingStore(engine, store)
        ending.callback(held.let_go)
        held.hold()
        serving = Serving(held, plan.series.open, progress, served=plan.series.base)
        sweep = _Sweep(plan, run_id, attempt, store, serving, progress, life.command)
        progress.start(sum(len(plan.asked_of[condition.level]) for _, condition in left), 0, "answers")
        for position, condition in left:
            checkpoint = serving.load(condition)
            if checkpoint is not None:
                sweep.ask(position, condition, checkpoint)
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


class _HoldingStore:
    """An engine that keeps the store's file open but while it generates.

    Opening the file takes about as long as the quick things a sweep does with it between two checkpoints.
    """

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine, self._store = engine, store
        self._file = contextlib.ExitStack()
        self.settings, self.device = engine.settings, engine.device
        self.load_checkpoint, self.reset_prefix_cache = engine.load_checkpoint, engine.reset_prefix_cache
        self.register, self.shards = engine.register, engine.shards

    def hold(self) -> None:
        """Opens the file; other processes wait for it."""
        self._file.enter_context(self._store.together())

    def let_go(self) -> None:
        """Closes the file."""
        self._file.close()

    def generate(self, *asked: Any, **how: Any) -> list[list[Completion]]:
        """As the engine does."""
        self.let_go()
        try:
            return self._engine.generate(*asked, **how)
        finally:
            self.hold()


@dataclass(slots=True)
class _Sweep:
    """One attempt at a sweep, with its live engine."""

    plan: Plan
    run_id: str
    attempt: Attempt
    store: Store
    serving: Serving
    progress: Progress
    command: str

    def ask(self, position: int, condition: AnyCondition, checkpoint: Checkpoint) -> None:
        """Answers what is missing of the checkpoint's own run and stores that it is done."""
        task = _task(self.plan, condition, checkpoint)
        answered = answer(
            task, self.store, self._serve, _Bar(self.progress), resume="auto", command=self.command
        )
        end = answered.end
        if not end.n_requests:
            self.progress.advance(task.n_answers)  # answered before
        done = SweepRow(
            position=position,
            **asdict(condition),
            ckpt_sha256=checkpoint.sha256,
            eval_run_id=answered.run_id,
            load_s=self.serving.load_s,
            attempt=self.attempt.number,
        )
        self.store.add(self.run_id, [done])
        self.attempt.add(end.n_requests, end.prompt_tokens, end.output_tokens, end.generate_s)

    def _serve(self, *_: object, **__: object) -> AbstractContextManager[Engine]:
        return contextlib.nullcontext(self.serving.engine)


@dataclass(slots=True)
class _Bar:
    """Passes on only the answers: a sweep has one bar and says itself what it does."""

    progress: Progress

    def phase(self, text: str) -> None: ...

    def start(self, n_total: int, n_done: int, unit: str) -> None:  # noqa: ARG002 - the protocol's
        self.progress.advance(n_done)

    def advance(self, n: int) -> None:
        self.progress.advance(n)


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
