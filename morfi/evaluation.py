"""Closed-book evaluation: questions to prompts, completions to verdicts, batches to the store."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from morfi.checkpoints import Checkpoint, resolve
from morfi.errors import InputError, MorfiError
from morfi.eval_config import EvalConfig
from morfi.matching import is_correct, parse_answer
from morfi.prompts import (
    ASKED,
    Prompt,
    build_prompts,
    check_lengths,
    choose_shots,
    load_tokenizer,
    starts_with_bos,
)
from morfi.provenance import attempt_record, new_run_id, now
from morfi.questions import UNSPLIT, QuestionSet, load_questions, select
from morfi.store.records import AttemptEnd, CompletionRow, RunRecord
from morfi.types import Completion, Generator, Sampling

if TYPE_CHECKING:
    from morfi.store import Store

KIND = "eval"
MAX_CONTEXT = 4096  # closed-book prompts are short; a longer context only costs memory


@dataclass(frozen=True, slots=True)
class Task:
    """An evaluation made ready: nothing has been generated or stored yet."""

    config: EvalConfig
    checkpoint: Checkpoint
    data: QuestionSet
    prompts: tuple[Prompt, ...]
    context: int  # tokens of prompt and answer together
    bos: bool
    fingerprint: str


class Progress(Protocol):
    """Told what happens: phases by name, and requests as they end."""

    def phase(self, text: str) -> None:
        """A new phase begins."""
        ...

    def start(self, n_total: int, n_done: int) -> None:
        """Generation begins; `n_done` of `n_total` were stored before."""
        ...

    def advance(self, n: int) -> None:
        """`n` more requests ended."""
        ...


class StartEngine(Protocol):
    """Starts what answers the prompts; `morfi.serve.engine.start_engine` is the real one."""

    def __call__(
        self, checkpoint: Checkpoint, *, context: int, seed: int, overrides: Mapping[str, Any]
    ) -> AbstractContextManager[Generator]:
        """A generator over `checkpoint` for requests of up to `context` tokens."""
        ...


def run_evaluation(
    config: EvalConfig,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    resume: str | None,
    command: str,
) -> str:
    """Carries out the evaluation of `config` and returns the id of its run, whose rows are in `store`.

    `resume` is None for a new run, "auto" to go on with the newest run that would give the same rows, or the
    id of a run. `command` is recorded.
    """
    task = prepare(config, progress)
    # Not before, for a refused command leaves no database; nor later, for an engine takes long to start.
    store.prepare()
    run = resumable_run(task, store, resume) or new_run(task)
    evaluate(task, run, store, start_engine, progress, command=command)
    return run.run_id


def prepare(config: EvalConfig, progress: Progress) -> Task:
    """The task of `config`: checkpoint resolved, questions chosen, prompts built and checked."""
    data = load_questions(config.data)
    split = _split(config, data)
    pool = select(data.splits[split], relations=config.relations, seed=config.seed)
    chosen = choose_shots(data, pool, split, shots=config.shots, seed=config.seed)
    scored = select(chosen.scored, limit=config.limit, seed=config.seed)
    checkpoint = resolve(config.ckpt, base=config.base, dtype=config.dtype, progress=progress.phase)
    tokenizer = load_tokenizer(checkpoint.model_dir)
    prompts = tuple(build_prompts(scored, chosen.exemplars, tokenizer, chat=config.chat))
    context = _context(checkpoint, config.engine)
    check_lengths(prompts, config.max_tokens, context)
    return Task(
        config=config,
        checkpoint=checkpoint,
        data=data,
        prompts=prompts,
        context=context,
        bos=starts_with_bos(prompts, tokenizer),
        fingerprint=_fingerprint(config, checkpoint, data, prompts),
    )


def _context(checkpoint: Checkpoint, engine: Mapping[str, Any]) -> int:
    """The tokens a request may have: the model's limit, or what the engine setting makes it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.model_dir, local_files_only=True)
    # An architecture without position embeddings names no limit of its own.
    limit = int(getattr(config, "max_position_embeddings", None) or MAX_CONTEXT)
    wanted = engine.get("max_model_len", min(limit, MAX_CONTEXT))
    if not isinstance(wanted, int) or not 0 < wanted <= limit:
        raise InputError(f"--engine max_model_len={wanted}: the model takes 1 to {limit} tokens")
    return wanted


def _split(config: EvalConfig, data: QuestionSet) -> str:
    wanted = config.split or (UNSPLIT if UNSPLIT in data.splits else "test")
    if wanted not in data.splits:
        there = ", ".join(data.splits)
        raise InputError(f'{data.name} has no split "{wanted}"; it has: {there}')
    return wanted


def _fingerprint(
    config: EvalConfig, checkpoint: Checkpoint, data: QuestionSet, prompts: Sequence[Prompt]
) -> str:
    """sha256 over all that decides the rows: weights, questions, prompts as token ids, and settings."""
    digest = hashlib.sha256()
    decided = asdict(config) | {"ckpt": checkpoint.sha256, "dtype": checkpoint.dtype, "data": data.sha256}
    for name_only in ("base", "split", "relations", "limit"):
        del decided[name_only]  # what they choose is in the prompts below
    digest.update(json.dumps(decided, sort_keys=True).encode())
    for prompt in prompts:
        digest.update(f"\n{prompt.question.id} {prompt.token_ids}".encode())
    return digest.hexdigest()


def new_run(task: Task) -> RunRecord:
    """The record of a run of `task` that begins now."""
    checkpoint = task.checkpoint
    return RunRecord(
        run_id=new_run_id(KIND),
        kind=KIND,
        created_at=now(),
        fingerprint=task.fingerprint,
        config=asdict(task.config),
        ckpt=checkpoint.name,
        ckpt_sha256=checkpoint.sha256,
        base=checkpoint.base,
        base_sha256=checkpoint.base_sha256,
        adapter_sha256=checkpoint.adapter_sha256,
        data=task.data.name,
        data_sha256=task.data.sha256,
        prompt="chat template" if task.config.chat else ASKED,
        bos=task.bos,
        seed=task.config.seed,
        n_planned=len(task.prompts),
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


def evaluate(
    task: Task, run: RunRecord, store: Store, start_engine: StartEngine, progress: Progress, *, command: str
) -> None:
    """Answers and stores what `run` still lacks of `task`, a batch in one transaction at a time.

    Batches are cut from the whole list of prompts, so a resumed run sees the very batches that an
    uninterrupted one sees: only whole batches are ever stored.
    """
    config = task.config
    done = {question_id for question_id, _ in store.finished(run.run_id)}
    batches = _batches(task.prompts, config.batch, done)
    if not batches:
        return
    started = time.monotonic()
    progress.phase("starting vLLM")
    with start_engine(
        task.checkpoint, context=task.context, seed=config.seed, overrides=config.engine
    ) as engine:
        store.begin_run(run, [prompt.question for prompt in task.prompts])
        number = store.begin_attempt(run.run_id, attempt_record(command, engine.settings, engine.device))
        tally = AttemptEnd(now(), "failed", 0.0, 0.0, 0, 0, 0)
        try:
            progress.start(len(task.prompts), len(done))
            for batch in batches:
                begun = time.monotonic()
                completions = _answer(engine, batch, config, progress)
                generate_s = time.monotonic() - begun
                rows = _judge(batch, completions, config.match, run.run_id, number)
                store.write_completions(rows)
                tally = _add(tally, rows, generate_s)
            tally = replace(tally, status="done")
        except BaseException as error:
            tally = _stopped(tally, error)
            database = shlex.quote(str(store.path))
            progress.phase(f"stopped; go on with: morfi eval --resume {run.run_id} --db {database}")
            raise
        finally:
            wall_s = time.monotonic() - started
            store.end_attempt(run.run_id, number, replace(tally, ended_at=now(), wall_s=wall_s))


def _stopped(tally: AttemptEnd, error: BaseException) -> AttemptEnd:
    if isinstance(error, KeyboardInterrupt):
        return replace(tally, status="interrupted", message="Ctrl-C")
    return replace(tally, status="failed", message=(str(error) or type(error).__name__)[:1000])


def _batches(prompts: Sequence[Prompt], size: int, done: Set[str]) -> list[Sequence[Prompt]]:
    """The batches of `size` prompts of which a question is not in `done`."""
    batches = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    return [batch for batch in batches if any(prompt.question.id not in done for prompt in batch)]


def _answer(
    engine: Generator, batch: Sequence[Prompt], config: EvalConfig, progress: Progress
) -> list[Completion]:
    engine.reset_prefix_cache()
    sampling = Sampling(max_tokens=config.max_tokens)
    answered = engine.generate([prompt.token_ids for prompt in batch], sampling, progress.advance)
    if [len(completions) for completions in answered] != [1] * len(batch):
        raise MorfiError(
            f"the engine gave {sum(map(len, answered))} answers to {len(batch)} prompts; none is stored"
        )
    return [completions[0] for completions in answered]


def _judge(
    batch: Sequence[Prompt], completions: Sequence[Completion], match: str, run_id: str, attempt: int
) -> list[CompletionRow]:
    rows = []
    for prompt, completion in zip(batch, completions, strict=True):
        answer = parse_answer(completion.text)
        rows.append(
            CompletionRow(
                run_id=run_id,
                question_id=prompt.question.id,
                sample=0,
                prompt=prompt.text,
                text=completion.text,
                answer=answer,
                finish_reason=completion.finish_reason,
                correct=is_correct(answer, prompt.question.answers, match),
                prompt_tokens=len(prompt.token_ids),
                cached_tokens=completion.n_cached_tokens,
                output_tokens=len(completion.token_ids),
                attempt=attempt,
            )
        )
    return rows


def _add(tally: AttemptEnd, rows: Sequence[CompletionRow], generate_s: float) -> AttemptEnd:
    return replace(
        tally,
        generate_s=tally.generate_s + generate_s,
        n_requests=tally.n_requests + len(rows),
        prompt_tokens=tally.prompt_tokens + sum(row.prompt_tokens for row in rows),
        output_tokens=tally.output_tokens + sum(row.output_tokens for row in rows),
    )
