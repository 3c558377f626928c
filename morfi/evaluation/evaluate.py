"""Closed-book evaluation of one checkpoint: `morfi eval`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from morfi.checkpoints import resolve
from morfi.engine.protocol import StartEngine
from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.questions import UNSPLIT, QuestionSet, load_questions, select
from morfi.questions.encoding import Spoken
from morfi.questions.exemplars import choose_shots
from morfi.questions.prompts import (
    ASKED,
    build_prompts,
    check_lengths,
    context_for,
    prompt_tokenizer,
    starts_with_bos,
)
from morfi.runs.answering import Answering, Task, answer, fingerprint_of, new_run, resumable_run
from morfi.runs.baselines import baselines_of, out_of_reach
from morfi.runs.options import located

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.terminal import Progress

KIND = "eval"


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
    answer(task, run, store, start_engine, progress, command=command)
    return run.run_id


def prepare(config: EvalConfig, progress: Progress) -> Task:
    """The task of `config`: checkpoint resolved, questions chosen, prompts built and checked."""
    progress.phase(f"reading {config.data}")
    data = load_questions(config.data)
    for note in data.notes:
        progress.phase(note)
    split = _split(config, data)
    pool = select(data.splits[split], relations=config.relations, seed=config.seed)
    chosen = choose_shots(data, pool, split, shots=config.shots, seed=config.seed)
    scored = select(chosen.scored, limit=config.limit, seed=config.seed)
    checkpoint = resolve(config.ckpt, base=config.base, dtype=config.dtype, progress=progress.phase)
    tokenizer = prompt_tokenizer(checkpoint.model_dir, config.bos, progress, chat=config.chat)
    spoken = Spoken(len(scored), progress.phase)
    prompts = tuple(build_prompts(scored, chosen.exemplars, tokenizer, chat=config.chat, on_part=spoken))
    context = context_for(checkpoint, config.engine)
    check_lengths(prompts, config.max_tokens, context)
    if said := out_of_reach(scored, tokenizer, config.max_tokens):
        progress.phase(said)
    decided = asdict(config)
    for name_only in ("base", "split", "relations", "limit", "bos"):
        del decided[name_only]  # what they choose is in the prompts
    return Task(
        kind=KIND,
        config=located(asdict(config)),
        answering=Answering(
            max_tokens=config.max_tokens,
            match=config.match,
            batch=config.batch,
            seed=config.seed,
            engine=config.engine,
        ),
        checkpoint=checkpoint,
        data=data,
        split_of=dict.fromkeys((question.id for question in scored), split),
        prompts=prompts,
        prompt_form="chat template" if config.chat else ASKED,
        context=context,
        bos=starts_with_bos(prompts, tokenizer),
        fingerprint=fingerprint_of(decided, checkpoint, data, prompts),
        again="morfi eval --resume {run_id} --db {db}",
        baselines=baselines_of({split: chosen.scored}, config.match),
    )


def _split(config: EvalConfig, data: QuestionSet) -> str:
    wanted = config.split or (UNSPLIT if UNSPLIT in data.splits else "test")
    if wanted not in data.splits:
        there = ", ".join(data.splits)
        raise InputError(f'{data.name} has no split "{wanted}"; it has: {there}')
    return wanted
