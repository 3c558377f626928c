"""Residual streams of every checkpoint of a train run on the same questions: `morfi capture`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.conditions.experiment import Experiment, load_experiment
from morfi.conditions.live import Serving
from morfi.engine.protocol import Engine, Sampling, StartEngine
from morfi.engine.steering import Capture
from morfi.errors import InputError, MorfiError
from morfi.questions import select
from morfi.questions.prompts import (
    ASKED,
    Prompt,
    build_prompts,
    check_lengths,
    context_for,
    prompt_tokenizer,
    starts_with_bos,
)
from morfi.questions.question import Question
from morfi.runs.answering import fingerprint_of
from morfi.runs.attempts import attempting
from morfi.runs.options import check_numbers, option, run_of
from morfi.runs.provenance import attempt_record, new_run_id, now
from morfi.store.records import CapturedRow, RunRecord
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store

KIND = "capture"


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """Everything that decides what a capture holds; stored with it."""

    ckpts: str = run_of("train")
    # Each residual stream is taken at the last token of the prompt.
    layers: tuple[int, ...] = option("Decoder layers after which the residual stream is taken.")
    split: str = "dev"
    limit: int | None = None
    seed: int = 0
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Capture(self.layers)
        check_numbers({"limit": (self.limit, 1), "seed": (self.seed, 0)})


@dataclass(frozen=True, slots=True)
class CaptureResult:
    """The run, and which checkpoints could not be captured and why."""

    run_id: str
    failures: tuple[str, ...]


def run_capture(
    config: CaptureConfig,
    store: Store,
    start_engine: StartEngine,
    out: Path,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> CaptureResult:
    """Writes the residual streams of the base model and of every checkpoint to a folder of the run in `out`.

    All are asked the questions of one split, each alone, without exemplars, as a sweep asks them. Goes on
    with the newest run of the same checkpoints and questions, unless `new`. A checkpoint that cannot be
    served is left out and named in the result; the others finish.
    """
    if store.path.exists():
        store.prepare()
    plan = _prepare(config, store, progress)
    known = None if new else store.latest_run(plan.fingerprint)
    run = known or _record(plan, out)
    questions = [prompt.question for prompt in plan.prompts]
    store.begin_run(run, {config.split: questions})
    done = {row.position for row in store.captured(run.run_id)}
    left = [place for place in enumerate(plan.experiment.conditions) if place[0] not in done]
    if not left:
        return CaptureResult(run.run_id, ())
    started = time.monotonic()
    progress.phase("starting vLLM")
    base = plan.experiment.base
    with start_engine(base, context=plan.context, seed=config.seed, overrides=config.engine) as engine:
        serving = Serving(engine, plan.experiment.open, progress, served=base)
        record = attempt_record(command, engine.settings, engine.device)
        again = "the same command goes on at the first checkpoint that is missing"
        with attempting(store, run.run_id, record, progress, started=started, again=again) as attempt:
            progress.start(len(left) * len(questions), 0)
            for position, condition in left:
                checkpoint = serving.load(condition)
                if checkpoint is None:
                    continue
                folder = Path(run.config["folder"]) / condition.id
                seconds = _capture(engine, plan, folder, progress)
                captured = CapturedRow(
                    position=position,
                    **asdict(condition),
                    ckpt_sha256=checkpoint.sha256,
                    path=str(folder),
                    files=file_hashes(folder),
                    load_s=serving.load_s,
                    capture_s=seconds,
                    attempt=attempt.number,
                )
                store.add(run.run_id, [captured])
                n_tokens = sum(len(prompt.token_ids) for prompt in plan.prompts)
                attempt.add(len(questions), n_tokens, len(questions), seconds)
            attempt.fail(serving.failures)
    return CaptureResult(run.run_id, tuple(serving.failures))


def file_hashes(folder: Path) -> dict[str, str]:
    """The sha256 of each file in `folder`, by name."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


@dataclass(frozen=True, slots=True)
class _Plan:
    config: CaptureConfig
    experiment: Experiment
    prompts: tuple[Prompt, ...]  # in order of question id
    context: int
    bos: bool
    fingerprint: str


def _prepare(config: CaptureConfig, store: Store, progress: Progress) -> _Plan:
    experiment = load_experiment(config.ckpts, store, config.dtype, progress)
    facts = store.knowledge(experiment.split.run_id)
    asked = [row.asked for row in facts if row.split == config.split]
    if not asked:
        there = ", ".join(sorted({row.split for row in facts}))
        raise InputError(f'the split run asked no questions of "{config.split}"; it has: {there}')
    questions: list[Question] = sorted(
        select(asked, limit=config.limit, seed=config.seed), key=lambda question: question.id
    )
    tokenizer = prompt_tokenizer(experiment.base.model_dir, experiment.bos, progress)
    relations = {question.relation for question in questions}
    prompts = build_prompts(questions, dict.fromkeys(relations, ()), tokenizer)
    context = context_for(experiment.base, config.engine)
    check_lengths(prompts, 1, context)
    decided = {**asdict(config), "ckpts": experiment.train.run_id, "kind": KIND}
    decided["checkpoints"] = experiment.adapters
    return _Plan(
        replace(config, ckpts=experiment.train.run_id),
        experiment,
        tuple(prompts),
        context,
        starts_with_bos(prompts, tokenizer),
        fingerprint_of(decided, experiment.base, experiment.data, prompts),
    )


def _record(plan: _Plan, out: Path) -> RunRecord:
    run_id, base = new_run_id(KIND), plan.experiment.base
    config = asdict(plan.config) | {
        "split_run": plan.experiment.split.run_id,
        "folder": str((out / run_id).absolute()),
    }
    return RunRecord(
        run_id=run_id,
        kind=KIND,
        created_at=now(),
        fingerprint=plan.fingerprint,
        config=config,
        ckpt=plan.experiment.train.ckpt,
        ckpt_sha256=base.sha256,
        base=base.base,
        base_sha256=base.base_sha256,
        adapter_sha256=None,
        data=plan.experiment.data.name,
        data_sha256=plan.experiment.data.sha256,
        prompt=ASKED,
        bos=plan.bos,
        seed=plan.config.seed,
        n_planned=len(plan.experiment.conditions),
    )


def _capture(engine: Engine, plan: _Plan, folder: Path, progress: Progress) -> float:
    """Writes one checkpoint's residual streams; returns the seconds that took."""
    begun = time.monotonic()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.parent}: {error.strerror}; give another --out") from error
    engine.reset_prefix_cache()
    prompts = [prompt.token_ids for prompt in plan.prompts]
    with engine.shards(folder):
        answers = engine.generate(
            prompts, Sampling(max_tokens=1), progress.advance, capture=Capture(plan.config.layers)
        )
    if len(answers) != len(prompts):
        raise MorfiError(f"the engine answered {len(answers)} of {len(prompts)} prompts; nothing is stored")
    return time.monotonic() - begun
