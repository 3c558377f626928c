"""Closed-book evaluation of one checkpoint: `morfi eval`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from morfi.checkpoints import resolve
from morfi.engine.protocol import StartEngine
from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.questions import UNSPLIT, QuestionSet, load_questions, select
from morfi.questions.exemplars import choose_shots
from morfi.questions.prompts import prompted
from morfi.runs.answering import Answering, Task, answer, fingerprint_of
from morfi.runs.baselines import baselines_of
from morfi.runs.settings import to_store
from morfi.store.records import RunKind

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.terminal import Progress


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
    return answer(task, store, start_engine, progress, resume=resume, command=command).run_id


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
    checkpoint = resolve(config.ckpt, base=config.base, dtype=config.dtype, say=progress.phase)
    asked = prompted(
        [replace(chosen, scored=scored)],
        checkpoint,
        config.engine,
        max_tokens=config.max_tokens,
        bos=config.bos,
        progress=progress,
        chat=config.chat,
    )
    decided = asdict(config)
    for name_only in ("base", "split", "relations", "limit", "bos"):
        del decided[name_only]  # what they choose is in the prompts
    return Task(
        kind=RunKind.EVAL,
        config=to_store(config),
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
        prompted=asked,
        fingerprint=fingerprint_of(decided, checkpoint, data, asked.prompts),
        again="morfi eval --resume {run_id} --db {db}",
        baselines=baselines_of({split: chosen.scored}, config.match),
    )


def _split(config: EvalConfig, data: QuestionSet) -> str:
    wanted = config.split or (UNSPLIT if UNSPLIT in data.splits else "test")
    if wanted not in data.splits:
        there = ", ".join(data.splits)
        raise InputError(f'{data.name} has no split "{wanted}"; it has: {there}')
    return wanted
