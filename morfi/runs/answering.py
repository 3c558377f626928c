"""Prompts to completions to verdicts to the store: the part that all runs which ask questions share."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint
from morfi.engine.protocol import Completion, Engine, Sampling, StartEngine
from morfi.errors import InputError, MorfiError
from morfi.questions import QuestionSet
from morfi.questions.matching import judge, parse_answer
from morfi.questions.prompts import Prompt
from morfi.questions.question import Question
from morfi.runs.attempts import NOTHING_DONE, attempting
from morfi.runs.provenance import attempt_record, new_run_id, now
from morfi.store.records import AttemptEnd, BaselineRow, CompletionRow, JudgedAnswer, RunRecord
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store


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

    kind: str
    config: Mapping[str, Any]  # stored with the run
    answering: Answering
    checkpoint: Checkpoint
    data: QuestionSet
    split_of: Mapping[str, str]  # by question id
    prompts: tuple[Prompt, ...]
    prompt_form: str
    context: int  # tokens of prompt and answer together
    bos: bool
    fingerprint: str
    again: str  # how to go on with a run, with "{run_id}" and "{db}" in it
    baselines: tuple[BaselineRow, ...] = ()  # of all questions that might be asked

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


def new_run(task: Task) -> RunRecord:
    """The record of a run of `task` that begins now."""
    checkpoint = task.checkpoint
    return RunRecord(
        run_id=new_run_id(task.kind),
        kind=task.kind,
        created_at=now(),
        fingerprint=task.fingerprint,
        config=task.config,
        ckpt=checkpoint.name,
        ckpt_sha256=checkpoint.sha256,
        base=checkpoint.base,
        base_sha256=checkpoint.base_sha256,
        adapter_sha256=checkpoint.adapter_sha256,
        data=task.data.name,
        data_sha256=task.data.sha256,
        prompt=task.prompt_form,
        bos=task.bos,
        seed=task.answering.seed,
        n_planned=task.n_answers,
    )


def resumable_run(task: Task, store: Store, run_id: str | None) -> RunRecord | None:
    """The stored run that `task` continues: `run_id`, or for "auto" the newest with the same fingerprint.

    None starts a new run. Raises InputError when `run_id` is a run of something else.
    """
    if run_id is None:
        return None
    if run_id == "auto":
        return store.latest_run(task.fingerprint)
    run = store.run(run_id)
    if run.fingerprint != task.fingerprint:
        raise InputError(
            f"run {run.run_id} cannot be resumed: its checkpoint, questions or settings have changed since; "
            "run the command without --resume"
        )
    return run


def answer(
    task: Task, run: RunRecord, store: Store, start_engine: StartEngine, progress: Progress, *, command: str
) -> AttemptEnd:
    """Answers and stores what `run` still lacks of `task`, a batch in one transaction at a time.

    Returns the attempt's times and counts. Batches are cut from the whole list of prompts, so a resumed run
    sees the very batches that an uninterrupted one sees: only whole batches are ever stored.
    """
    settings = task.answering
    done = store.finished(run.run_id)
    batches = _batches(task.prompts, settings.batch, done)
    if not batches:
        return NOTHING_DONE
    store.check_free(run.run_id)  # before an engine is started for nothing
    started = time.monotonic()
    progress.phase("starting vLLM")
    with start_engine(
        task.checkpoint, context=task.context, seed=settings.seed, overrides=settings.engine
    ) as engine:
        record = attempt_record(command, engine.settings, engine.device)
        again = task.again.format(run_id=run.run_id, db=shlex.quote(str(store.path)))
        with attempting(
            store,
            run.run_id,
            record,
            progress,
            started=started,
            again=f"go on with: {again}",
            begin=partial(_begin, task, run, store),
        ) as attempt:
            progress.start(task.n_answers, len(done))
            for batch in batches:
                begun = time.monotonic()
                completions = _ask(engine, batch, settings, progress)
                generate_s = time.monotonic() - begun
                rows = _rows(batch, completions, settings.match, run.run_id, attempt.number)
                store.write_completions(rows)
                attempt.count([row.judged for row in rows], generate_s)
    return attempt.tally


def _begin(task: Task, run: RunRecord, store: Store) -> None:
    store.begin_run(run, _by_split(task))
    store.add(run.run_id, task.baselines)


def _by_split(task: Task) -> dict[str, list[Question]]:
    questions = {prompt.question.id: prompt.question for prompt in task.prompts}
    by_split: dict[str, list[Question]] = {}
    for question_id, question in questions.items():
        by_split.setdefault(task.split_of[question_id], []).append(question)
    return by_split


def _batches(prompts: Sequence[Prompt], size: int, done: Set[tuple[str, int]]) -> list[Sequence[Prompt]]:
    """The batches of `size` prompts of which one is not in `done`."""
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [batch for batch in batches if any((p.question.id, p.sample) not in done for p in batch)]


def _ask(
    engine: Engine, batch: Sequence[Prompt], settings: Answering, progress: Progress
) -> list[list[Completion]]:
    """The completions of each prompt, the greedy one first; all requests of a batch run together."""
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
    return [first + rest for first, rest in zip(greedy, sampled, strict=True)] if sampled else greedy


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
    verdicts = judge(found, prompt.question.answers, match)
    return JudgedAnswer(
        text=completion.text,
        answer=found,
        finish_reason=completion.finish_reason,
        correct=verdicts.correct,
        correct_squad=verdicts.correct_squad,
        correct_answer=verdicts.correct_answer,
        prompt_tokens=len(prompt.token_ids),
        cached_tokens=completion.n_cached_tokens,
        output_tokens=len(completion.token_ids),
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
