"""Directions times strengths times questions as one stream of requests through one engine: `morfi steer`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from morfi.engine.protocol import Completion, Engine, Sampling, StartEngine
from morfi.engine.several import Span, share_out
from morfi.engine.steering import Steering
from morfi.errors import MorfiError
from morfi.interventions.config import SteerConfig
from morfi.interventions.directions import Target
from morfi.interventions.plan import Plan, combined_amounts, prepare_steer
from morfi.interventions.steerer import Steerer
from morfi.interventions.verdicts import (
    UNSTEERED,
    Answerer,
    Arm,
    Verdicts,
    best_arms,
    ranked_arms,
    read_verdicts,
    survivors,
)
from morfi.runs.answering import judged
from morfi.runs.life import Attempt, Life, Ready, new_run
from morfi.store.records import RunKind, RunRecord, SteeredRow
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.endpoint.engine import Endpoint
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Request:
    """One question to one of the checkpoints, steered or not."""

    served: str
    arm: Arm
    question_id: str


@dataclass(frozen=True, slots=True)
class Stage:
    """Requests that run together; `targets` are the directions that they are the first to need."""

    requests: Sequence[Request]
    targets: Sequence[Target] = field(default=())


def run_steer(
    config: SteerConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> str:
    """Asks what `config` says and stores every answer; returns the run that holds them.

    Goes on with the newest run that would ask the same, unless `new`: only whole batches are ever stored, so
    a resumed run sees the batches that an uninterrupted one sees.
    """
    ready = ready_steer(config, store, start_engine, progress, new=new, command=command)
    ready.finish()
    return ready.result


def ready_steer(
    config: SteerConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> Ready:
    """The work of `run_steer`; nothing is asked before."""
    if store.path.exists():
        store.prepare()
    plan = prepare_steer(config, store, progress)
    life = Life(
        _record(plan),
        store,
        progress,
        command,
        again="the same command goes on at the first batch that is missing",
        questions=plan.questions,
    ).resumed(None if new else "auto")
    verdicts = read_verdicts(store.steered(life.run.run_id))
    is_whole = _is_whole(plan, verdicts)
    return Ready(life.run.run_id, None if is_whole else partial(_steer, plan, verdicts, life, start_engine))


def _steer(plan: Plan, verdicts: Verdicts, life: Life, start_engine: StartEngine) -> Sequence[str]:
    """Asks what the run of `life` lacks; `verdicts` are those that it has."""
    config, store, progress, run_id = plan.config, life.store, life.progress, life.run.run_id
    n_done = sum(map(len, verdicts.right.values()))
    base = plan.series.base
    start = partial(start_engine, base, context=plan.asked.context, seed=config.seed, overrides=config.engine)
    with life.engine(start) as (engine, attempt), contextlib.ExitStack() as open_servers:
        servers = {who: open_servers.enter_context(_asking(one)) for who, one in plan.servers.items()}
        steerer = Steerer(engine, plan.found.sae, config.positions, config.low)
        stream = _Stream(plan, run_id, attempt, store, steerer, progress, verdicts, base.sha256, servers)
        progress.start(plan.n_answers, n_done, "answers")
        for stage in stages(plan, verdicts):
            stream.answer(stage)
    return ()


def _asking(server: Endpoint) -> AbstractContextManager[Engine]:
    return server.start(server.checkpoint, context=0, seed=0, overrides={})


def stages(plan: Plan, verdicts: Verdicts) -> Iterator[Stage]:
    """The stages of asking, one after the other; later ones depend on the verdicts of those before.

    Unsteered answers first, then every strength of every direction on the questions for choosing, then each
    direction at its best strength on the questions that are reported.
    """
    both = (*plan.choosing, *plan.reporting)
    yield Stage(_requests([UNSTEERED], both, Answerer.BASE))
    yield Stage(_requests([UNSTEERED], both, Answerer.REFERENCE))
    everything = (*plan.targets, *plan.scan)
    first = _requests([UNSTEERED], both) + _requests(plan.arms(plan.scan), plan.choosing)
    arms = plan.arms(plan.targets)
    asked: tuple[str, ...] = ()
    for rung in plan.rungs if plan.config.halving else (plan.choosing,):
        fresh = [question_id for question_id in rung if question_id not in set(asked)]
        yield Stage(first + _requests(arms, fresh), everything)
        first, asked = [], rung
        if len(rung) < len(plan.choosing):
            arms = survivors(verdicts, arms, rung)
    best = best_arms(verdicts, arms, plan.choosing)
    combined = combined_targets(plan, verdicts, best)
    together = [Arm(one.row.direction, share) for one in combined for share in combined_amounts(plan.config)]
    yield Stage(_requests(together, plan.choosing), combined)
    best |= best_arms(verdicts, together, plan.choosing)
    yield Stage(_requests(list(best.values()), plan.reporting))


def combined_targets(plan: Plan, verdicts: Verdicts, best: dict[str, Arm]) -> list[Target]:
    """The best latents together, each at its own best strength: 2 of them, 4, ..., all."""
    own = {one.row.direction: one for one in plan.targets if one.row.kind == "latent"}
    ranked = ranked_arms(verdicts, [best[name] for name in own], plan.choosing)
    found: list[Target] = []
    for size in plan.combined_sizes:
        parts = [(own[arm.direction], arm.alpha) for arm in ranked[:size]]
        # The sum of what each would add, in units of the median norm: no unit vector.
        first = parts[0][0]
        vector = sum((alpha * one.vector for one, alpha in parts), start=0 * first.vector)
        row = replace(
            first.row,
            position=len(plan.targets) + len(plan.scan) + len(found),
            direction=f"best {size}",
            kind="combined",
            latent=None,
            trend=0,
            s=None,
            firing=None,
            parts={str(one.row.latent): alpha for one, alpha in parts},
        )
        found.append(Target(row, vector))
    return found


def _requests(
    arms: Sequence[Arm], question_ids: Sequence[str], served: str = Answerer.CHECKPOINT
) -> list[Request]:
    # A question's requests stand together: what their steerings have in common is computed once a step.
    return [Request(served, arm, question_id) for question_id in question_ids for arm in arms]


def _missing(requests: Sequence[Request], size: int, verdicts: Verdicts) -> list[Sequence[Request]]:
    """The batches of `size` requests of which one has no answer."""
    batches = [requests[start : start + size] for start in range(0, len(requests), size)]
    return [
        batch
        for batch in batches
        if any(one.question_id not in verdicts.of(one.arm, one.served) for one in batch)
    ]


def _is_whole(plan: Plan, verdicts: Verdicts) -> bool:
    return not any(_missing(stage.requests, plan.config.batch, verdicts) for stage in stages(plan, verdicts))


def _record(plan: Plan) -> RunRecord:
    return new_run(
        RunKind.STEER,
        plan.served[Answerer.CHECKPOINT],
        plan.data,
        config=plan.stored,
        fingerprint=plan.fingerprint,
        bos=plan.asked.bos,
        seed=plan.config.seed,
        n_planned=plan.n_answers,
    )


@dataclass(frozen=True, slots=True)
class _Completed:
    """The completion of each request of a batch, and when they were generated."""

    completions: Sequence[Completion]
    span: Span


@dataclass(slots=True)
class _Stream:
    """One attempt at a steer run, with its live engine."""

    plan: Plan
    run_id: str
    attempt: Attempt
    store: Store
    steerer: Steerer
    progress: Progress
    verdicts: Verdicts
    served_sha256: str
    servers: Mapping[str, Engine] = field(default_factory=dict)  # that give unsteered answers, by whose

    def answer(self, stage: Stage) -> None:
        """Answers and stores what is missing of a stage, a batch in one transaction at a time."""
        if stage.targets:
            self.store.add(self.run_id, [one.row for one in stage.targets])
            for target in stage.targets:
                self.steerer.register(target)
        batches = _missing(stage.requests, self.plan.config.batch, self.verdicts)
        for served in {one.served for batch in batches for one in batch if self._server_of(one) is None}:
            self._serve(served)
        for done in share_out(
            self.steerer.engine, [[batch] for batch in batches], self._generate, self.progress.phase
        ):
            rows = [self._judge(*each) for each in zip(done.unit, done.result.completions, strict=True)]
            self.store.add(self.run_id, rows)
            for row in rows:
                arm = Arm(row.direction, row.alpha)
                self.verdicts.add(row.served, arm, row.question_id, correct=row.judged.correct)
            self.attempt.count([row.judged for row in rows], done.result.span)

    def _server_of(self, one: Request) -> str | None:
        """Whose answers a server gives that gives this one; None for the engine."""
        return one.served if one.arm == UNSTEERED and one.served in self.servers else None

    def _serve(self, name: str) -> None:
        checkpoint = self.plan.served[name]
        if checkpoint.sha256 != self.served_sha256:
            self.progress.phase(f"loading {checkpoint.name}")
            self.steerer.engine.load_checkpoint(checkpoint)
            self.served_sha256 = checkpoint.sha256

    def _generate(self, engine: Engine, batch: Sequence[Request]) -> _Completed:
        """One greedy answer to each request; raises MorfiError for one that was not steered as asked."""
        begun = time.monotonic()
        by_server: dict[str | None, list[int]] = {}
        for place, one in enumerate(batch):
            by_server.setdefault(self._server_of(one), []).append(place)
        steerings = [self._steering(one) for one in batch]
        found: dict[int, Completion] = {}
        for who, places in by_server.items():
            asked = [batch[place].question_id for place in places]
            if who is None:
                asks, texts, own = engine, self.plan.prompts, [steerings[i] for i in places]
                engine.reset_prefix_cache()
            else:
                asks, texts, own = self.servers[who], self.plan.texts, None
            prompts = [texts[question_id].token_ids for question_id in asked]
            found |= zip(places, self._ask(asks, prompts, own), strict=True)
        answered = [found[place] for place in range(len(batch))]
        for one, wanted, completion in zip(batch, steerings, answered, strict=True):
            if [applied.steering for applied in completion.applied] != wanted:
                raise MorfiError(
                    f"question {one.question_id} was not steered along {one.arm.direction or 'nothing'} as "
                    "asked; nothing of its batch is stored"
                )
        return _Completed(answered, Span.since(begun))

    def _steering(self, one: Request) -> list[Steering]:
        return self.steerer.steering(one.arm.direction, one.arm.alpha)

    def _ask(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        steering: Sequence[Sequence[Steering]] | None,
    ) -> list[Completion]:
        """One greedy answer to each prompt."""
        sampling = Sampling(max_tokens=self.plan.config.max_tokens)
        answered = engine.generate(prompts, sampling, self.progress.advance, steering=steering)
        if len(answered) != len(prompts):
            raise MorfiError(f"the engine gave {len(answered)} answers to {len(prompts)}; none is stored")
        return [completion for (completion,) in answered]

    def _judge(self, one: Request, completion: Completion) -> SteeredRow:
        prompt, steering = self.plan.prompts[one.question_id], self._steering(one)
        return SteeredRow(
            served=one.served,
            direction=one.arm.direction,
            alpha=one.arm.alpha,
            question_id=one.question_id,
            strength=steering[0].strength if len(steering) == 1 else 0.0,
            steered_tokens=max((applied.n_tokens for applied in completion.applied), default=0),
            judged=judged(prompt, completion, self.plan.config.match, self.attempt.number),
        )
