"""Closed-book evaluation of one checkpoint: `morfi eval`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from morfi.checkpoints import resolve
from morfi.engine.protocol import StartEngine
from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.how import HOW, endpoint_of
from morfi.questions import UNSPLIT, QuestionSet, load_questions, select
from morfi.questions.exemplars import choose_shots
from morfi.questions.prompts import ShownPrompt, prompted, shown, worded
from morfi.runs.answering import Answering, Task, answer, fingerprint_of
from morfi.runs.baselines import baselines_of
from morfi.runs.life import STARTING
from morfi.runs.settings import to_store
from morfi.store.records import RunKind

if TYPE_CHECKING:
    from morfi.endpoint.engine import Endpoint
    from morfi.store import Store
    from morfi.terminal import Progress

# What they choose is in the prompts and the checkpoint, or changes no answer.
_CHOOSE_ONLY = (
    "base",
    "split",
    "relations",
    "limit",
    "bos",
    "endpoint",
    "served",
    "prompt_template",
    "system",
    *HOW,
)


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
    endpoint = endpoint_of(config, progress)
    task = prepare(config, progress, endpoint, read_by=None if resume == "auto" else resume)
    start = start_engine if endpoint is None else endpoint.start
    return answer(task, store, start, progress, resume=resume, command=command).run_id


def shown_prompts(config: EvalConfig, n: int, progress: Progress) -> list[ShownPrompt]:
    """The first `n` prompts of `config`; nothing is asked, nor a server whether it is there."""
    endpoint = endpoint_of(config, progress, reached=False)
    return shown(prepare(config, progress, endpoint).prompted, n)


def prepare(
    config: EvalConfig, progress: Progress, endpoint: Endpoint | None = None, *, read_by: str | None = None
) -> Task:
    """The task of `config`: questions chosen, prompts built and checked.

    They are for the model of `endpoint`, else for the checkpoint, which is resolved. `read_by` is the run
    that is resumed, if one is.
    """
    progress.phase(f"reading {config.data}")
    data = load_questions(config.data, read_by=read_by)
    for note in data.notes:
        progress.phase(note)
    split = _split(config, data)
    pool = select(data.splits[split], relations=config.relations, seed=config.seed)
    chosen = choose_shots(data, pool, split, shots=config.shots, seed=config.seed)
    scored = select(chosen.scored, limit=config.limit, seed=config.seed)
    wording = config.wording
    shots = [replace(chosen, scored=scored)]
    if endpoint is not None:
        checkpoint, asked = endpoint.checkpoint, worded(shots, wording)
    else:
        assert config.ckpt is not None
        checkpoint = resolve(config.ckpt, base=config.base, dtype=config.dtype, say=progress.phase)
        asked = prompted(
            shots,
            checkpoint,
            config.engine,
            max_tokens=config.max_tokens,
            match=config.match,
            bos=config.bos,
            progress=progress,
            wording=wording,
        )
    decided = {name: value for name, value in asdict(config).items() if name not in _CHOOSE_ONLY}
    if wording.template is not None:
        decided["prompt_template"] = wording.template.sha256
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
        begins=STARTING if endpoint is None else endpoint.begins,
    )


def _split(config: EvalConfig, data: QuestionSet) -> str:
    wanted = config.split or (UNSPLIT if UNSPLIT in data.splits else "test")
    if wanted not in data.splits:
        there = ", ".join(data.splits)
        raise InputError(f'{data.name} has no split "{wanted}"; it has: {there}')
    return wanted
