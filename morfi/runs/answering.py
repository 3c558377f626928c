"""Prompts to completions to verdicts to the store: the part that all runs which ask questions share."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint
from morfi.engine.protocol import Completion, Engine, Sampling, StartEngine, TokenCounts
from morfi.engine.several import Done, Span, share_out
from morfi.errors import MorfiError
from morfi.questions import QuestionSet
from morfi.questions.matching import judge, parse_answer
from morfi.questions.prompts import Prompt, Prompted
from morfi.questions.question import Question
from morfi.runs.life import NOTHING_DONE, STARTING, Attempt, Life, Ready, new_run
from morfi.store.records import AttemptEnd, BaselineRow, CompletionRow, JudgedAnswer, RunKind
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store

Batch = Sequence[Prompt]


@dataclass(frozen=True, slots=True)
class Answering:
    """How every prompt is answered: greedily, then `samples` times at `temperature` among the `top_k`."""

    max_tokens: int
    match: str
    batch: int  # prompts answered and stored together; the prefix cache starts empty for each batch
    seed: int
    engine: Mapping[str, Any]
    samples: int = 0
    temperature: float = 0.0
    top_k: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """Questions made ready to be asked: nothing has been generated or stored yet."""

    kind: RunKind
    config: Mapping[str, Any]  # stored with the run
    answering: Answering
    checkpoint: Checkpoint
    data: QuestionSet
    split_of: Mapping[str, str]  # by question id
    prompted: Prompted
    fingerprint: str
    again: str  # how to go on with a run, with "{run_id}" and "{db}" in it
    baselines: tuple[BaselineRow, ...] = ()  # of all questions that might be asked
    begins: str = STARTING  # what is said when the engine starts

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All prompts, in the order in which they are answered."""
        return self.prompted.prompts

    @property
    def n_answers(self) -> int:
        """The completions that the whole task gives."""
        return len(self.prompts) * (1 + self.answering.samples)


def fingerprint_of(
    decided: Mapping[str, Any], checkpoint: Checkpoint, data: QuestionSet, prompts: Sequence[Prompt]
) -> str:
    """sha256 over all that decides the rows: weights, questions, prompts as token ids, and settings.

    `decided` are the settings that do so beside what they choose: checkpoint, data and prompts.
    """
    decided = {**decided, "ckpt": checkpoint.sha256, "dtype": checkpoint.dtype, "data": data.sha256}
    digest = hashlib.sha256(json.dumps(decided, sort_keys=True).encode())
    for prompt in prompts:
        number = f"/{prompt.sample}" if prompt.sample else ""
        digest.update(f"\n{prompt.question.id}{number} {prompt.token_ids}".encode())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Completed:
    """The completions of each prompt of a batch, and when they were generated."""

    completions: Sequence[Sequence[Completion]]
    span: Span


@dataclass(frozen=True, slots=True)
class Answered:
    """The run that holds the answers, and the times and counts of the attempt that gave those it lacked."""

    run_id: str
    end: AttemptEnd


def answer(
    task: Task,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    resume: str | None,
    command: str,
) -> Answered:
    """Answers and stores `task`, or what the run to resume (`Life.resumed`) still lacks of it.

    A batch is stored in one transaction. Batches are cut from the whole list of prompts, so a resumed run
    sees the very batches that an uninterrupted one sees: only whole batches are ever stored.
    """
    # Not before, for a refused command leaves no database; nor later, for an engine takes long to start.
    store.prepare()
    life = life_of(task, store, progress, command).resumed(resume)
    return _answered(task, life, start_engine)


def ready_to_answer(
    task: Task, store: Store, start_engine: StartEngine, progress: Progress, *, new: bool, command: str
) -> Ready:
    """What the newest run of the fingerprint of `task` lacks of it, or all of it as a `new` run."""
    life = life_of(task, store, progress, command).resumed(None if new else "auto")
    done = store.finished(life.run.run_id) if store.path.exists() else set()

    def work() -> Sequence[str]:
        store.prepare()
        _answered(task, life, start_engine)
        return ()

    return Ready(life.run.run_id, work if batches_without(done, task) else None)


def _answered(task: Task, life: Life, start_engine: StartEngine) -> Answered:
    """Answers and stores what the run of `life` lacks of `task`."""
    store, progress, settings, run_id = life.store, life.progress, task.answering, life.run.run_id
    done = store.finished(run_id)
    batches = batches_without(done, task)
    if not batches:
        return Answered(run_id, NOTHING_DONE)
    again = task.again.format(run_id=run_id, db=shlex.quote(str(store.path)))
    start = partial(
        start_engine,
        task.checkpoint,
        context=task.prompted.context,
        seed=settings.seed,
        overrides=settings.engine,
    )
    with replace(life, again=f"go on with: {again}").engine(start, task.begins) as (engine, attempt):
        progress.start(task.n_answers, len(done), "answers")
        work = partial(ask, settings=settings, progress=progress)
        for asked in share_out(engine, [[batch] for batch in batches], work, progress.phase):
            keep(life, attempt, settings.match, asked)
    return Answered(run_id, attempt.tally)


def life_of(task: Task, store: Store, progress: Progress, command: str) -> Life:
    """The life of a new run of `task`."""
    run = new_run(
        task.kind,
        task.checkpoint,
        task.data,
        config=task.config,
        fingerprint=task.fingerprint,
        bos=task.prompted.bos,
        seed=task.answering.seed,
        n_planned=task.n_answers,
        prompt=task.prompted.form,
    )
    return Life(run, store, progress, command, questions=_by_split(task), baselines=task.baselines)


def _by_split(task: Task) -> dict[str, list[Question]]:
    questions = {prompt.question.id: prompt.question for prompt in task.prompts}
    by_split: dict[str, list[Question]] = {}
    for question_id, question in questions.items():
        by_split.setdefault(task.split_of[question_id], []).append(question)
    return by_split


def batches_without(done: Set[tuple[str, int]], task: Task) -> list[Batch]:
    """The batches of `task` of which one prompt is not in `done`."""
    prompts, size = task.prompts, task.answering.batch
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [batch for batch in batches if any((p.question.id, p.sample) not in done for p in batch)]


def ask(engine: Engine, batch: Batch, settings: Answering, progress: Progress) -> Completed:
    """The completions of each prompt, the greedy one first; all requests of a batch run together."""
    begun = time.monotonic()
    engine.reset_prefix_cache()
    token_ids = [prompt.token_ids for prompt in batch]
    wanted = [Sampling(max_tokens=settings.max_tokens)] * len(batch)
    if settings.samples:
        wanted += [_sampling(prompt, settings) for prompt in batch]
        token_ids *= 2
    answered = engine.generate(token_ids, wanted, progress.advance)
    if [len(completions) for completions in answered] != [sampling.n for sampling in wanted]:
        raise MorfiError(
            f"the engine gave {sum(map(len, answered))} answers where {sum(s.n for s in wanted)} were asked "
            "for; none is stored"
        )
    greedy, sampled = answered[: len(batch)], answered[len(batch) :]
    if sampled:
        greedy = [first + rest for first, rest in zip(greedy, sampled, strict=True)]
    return Completed(greedy, Span.since(begun))


def keep(life: Life, attempt: Attempt, match: str, asked: Done[Batch, Completed]) -> list[JudgedAnswer]:
    """Judges what was answered to a batch by the rule `match`, and stores it in one transaction."""
    rows = _rows(asked.unit, asked.result.completions, match, life.run.run_id, attempt.number)
    life.store.write_completions(rows)
    answers = [row.judged for row in rows]
    attempt.count(answers, asked.result.span)
    return answers


def _sampling(prompt: Prompt, settings: Answering) -> Sampling:
    """How `prompt` is sampled, with a seed of its own: its answers depend on no other prompt's."""
    name = f"{settings.seed}/{prompt.question.id}/{prompt.sample}"
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    return Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        n=settings.samples,
        seed=seed,
    )


def judged(prompt: Prompt, completion: Completion, match: str, attempt: int) -> JudgedAnswer:
    """The answer that a completion gives to the question of `prompt`, by the rule `match`."""
    found = parse_answer(completion.text)
    n_tokens = completion.counted or TokenCounts(len(prompt.token_ids), len(completion.token_ids))
    verdicts = judge(found, prompt.question.answers, match)
    return JudgedAnswer(
        text=completion.text,
        answer=found,
        finish_reason=completion.finish_reason,
        correct=verdicts.correct,
        correct_squad=verdicts.correct_squad,
        correct_answer=verdicts.correct_answer,
        prompt_tokens=n_tokens.prompt,
        cached_tokens=completion.n_cached_tokens,
        output_tokens=n_tokens.output,
        attempt=attempt,
    )


def _rows(
    batch: Sequence[Prompt],
    answered: Sequence[Sequence[Completion]],
    match: str,
    run_id: str,
    attempt: int,
) -> list[CompletionRow]:
    return [
        CompletionRow(
            run_id=run_id,
            question_id=prompt.question.id,
            sample=prompt.sample + number,
            prompt=prompt.text,
            judged=judged(prompt, completion, match, attempt),
        )
        for prompt, completions in zip(batch, answered, strict=True)
        for number, completion in enumerate(completions)
    ]
