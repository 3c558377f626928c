"""Residual streams of every checkpoint of a series on the same questions: `morfi capture`."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint
from morfi.conditions.asking import source_of
from morfi.conditions.condition import AnyCondition
from morfi.conditions.live import Serving
from morfi.conditions.load import load_series
from morfi.conditions.series import Series
from morfi.engine.protocol import Engine, Sampling, StartEngine
from morfi.engine.residual_stream import stream_of
from morfi.engine.several import Span, share_out
from morfi.engine.steering import Capture
from morfi.errors import InputError, MorfiError
from morfi.questions import QuestionSet
from morfi.questions.exemplars import no_shots
from morfi.questions.prompts import AS_IT_IS, PLAIN, Prompted, Wording, prompted
from morfi.runs.answering import fingerprint_of
from morfi.runs.life import Life, Ready, new_run
from morfi.runs.options import check_numbers, data_of_series, option, series_of
from morfi.runs.settings import settings_of, to_store
from morfi.store.records import CapturedRow, RunKind, RunRecord
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class CaptureConfig:
    """Everything that decides what a capture holds; stored with it."""

    ckpts: str = series_of()
    # Each residual stream is taken at the last token of the prompt.
    layers: tuple[int, ...] = option("Decoder layers after which the residual stream is taken.")
    data: str | None = data_of_series()
    prompts: str | None = option(
        'A file of texts, to be read as they are: lines, or JSON lines with "text".', None, unset="questions"
    )
    split: str | None = option("train, dev or test.", None, unset="dev, or all of data without splits")
    relations: tuple[str, ...] = ()
    limit: int | None = None
    seed: int = 0
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers({"layers": (self.layers, 0), "limit": (self.limit, 1), "seed": (self.seed, 0)})
        Capture(self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureRun(CaptureConfig):
    """The settings that a capture run is stored with."""

    split: str
    split_run: str | None
    series_sha256: str | None  # of a TOML file's
    property: str
    unit: str | None
    folder: str  # of its shards


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

    All are asked the questions of one split, each alone, without exemplars, as a sweep asks them, or read
    texts as they are. Goes on with the newest run of the same checkpoints and questions, unless `new`. A
    checkpoint that cannot be served is left out and named in the result; the others finish.
    """
    ready = ready_capture(config, store, start_engine, out, progress, new=new, command=command)
    return CaptureResult(ready.result, tuple(ready.finish()))


def ready_capture(
    config: CaptureConfig,
    store: Store,
    start_engine: StartEngine,
    out: Path,
    progress: Progress,
    *,
    new: bool,
    command: str,
) -> Ready:
    """The work of `run_capture`; nothing is captured or stored before."""
    if store.path.exists():
        store.prepare()
    plan = _prepare(config, store, progress)
    questions = [prompt.question for prompt in plan.asked.prompts]
    life = Life(
        _record(plan, out),
        store,
        progress,
        command,
        again="the same command goes on at the first checkpoint that is missing",
        questions={plan.split: questions},
    ).resumed(None if new else "auto")
    done = {row.position for row in store.captured(life.run.run_id)} if store.path.exists() else set()
    left = [place for place in enumerate(plan.series.conditions) if place[0] not in done]
    return Ready(life.run.run_id, partial(_capture_all, plan, left, life, start_engine) if left else None)


def _capture_all(
    plan: _Plan, left: Sequence[tuple[int, AnyCondition]], life: Life, start_engine: StartEngine
) -> Sequence[str]:
    """Captures the checkpoints that are `left`, by position; returns which could not be and why."""
    config, store, progress, run = plan.config, life.store, life.progress, life.run
    store.prepare()
    questions = plan.asked.prompts
    base, shards = plan.series.base, Path(settings_of(run, CaptureRun).folder)
    start = partial(start_engine, base, context=plan.asked.context, seed=config.seed, overrides=config.engine)
    with life.engine(start) as (engine, attempt):
        serving = Serving(plan.series.open, progress, base)
        progress.start(len(left) * len(questions), 0, "prompts")
        work = partial(_capture, plan=plan, serving=serving, shards=shards)
        for done in share_out(engine, _groups(plan, left, serving), work, progress.phase):
            one, taken = done.unit, done.result
            if isinstance(taken, MorfiError):
                serving.fail(one.condition, taken)
                continue
            captured = CapturedRow(
                position=one.position,
                **asdict(one.condition),
                ckpt_sha256=one.checkpoint.sha256,
                path=str(shards / one.condition.id),
                files=taken.files,
                load_s=taken.load_s,
                capture_s=taken.span.seconds,
                attempt=attempt.number,
            )
            store.add(run.run_id, [captured])
            n_tokens = sum(len(prompt.token_ids) for prompt in questions)
            attempt.add(len(questions), n_tokens, len(questions), taken.span)
        attempt.fail(serving.failures)
    return serving.failures


def _groups(
    plan: _Plan, left: Sequence[tuple[int, AnyCondition]], serving: Serving
) -> Iterator[Sequence[_Place]]:
    """The checkpoints that are `left`, opened; those of one content together."""
    for _, places in itertools.groupby(left, key=lambda place: plan.series.content_of(place[1])):
        opened = ((position, condition, serving.opened(condition)) for position, condition in places)
        yield [
            _Place(n, condition, checkpoint) for n, condition, checkpoint in opened if checkpoint is not None
        ]


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
    split: str
    series: Series
    data: QuestionSet
    asked: Prompted  # in order of question id
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Place:
    """A checkpoint to capture, and its position in the run."""

    position: int
    condition: AnyCondition
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class _Taken:
    """How long a checkpoint took to load, when it was captured, and the sha256 of each file that it gave."""

    load_s: float
    span: Span
    files: Mapping[str, str]


def _prepare(config: CaptureConfig, store: Store, progress: Progress) -> _Plan:
    series = load_series(config.ckpts, store, config.dtype, progress)
    for layer in config.layers:
        stream_of(series.base).check_layer(layer, "--layers")
    source = source_of(series, store, config.data, config.relations, progress, prompts=config.prompts)
    split = source.split(config.split, "dev")
    questions = sorted(source.chosen(split, config.limit, config.seed), key=lambda question: question.id)
    asked = prompted(
        [no_shots(questions)],
        series.base,
        config.engine,
        max_tokens=1,
        bos=series.bos,
        progress=progress,
        wording=PLAIN if config.prompts is None else Wording(asked=AS_IT_IS),
    )
    decided = {**asdict(config), "ckpts": series.source, "split": split, "kind": RunKind.CAPTURE}
    decided["checkpoints"] = series.content
    if series.lineage is None:
        del decided["ckpts"], decided["data"]  # names of files, whose content decides
    del decided["prompts"]
    return _Plan(
        replace(config, ckpts=series.source),
        split,
        series,
        source.data,
        asked,
        fingerprint_of(decided, series.base, source.data, asked.prompts),
    )


def _record(plan: _Plan, out: Path) -> RunRecord:
    series, runs = plan.series, plan.series.lineage
    more = {
        "split": plan.split,
        "split_run": None if runs is None or plan.config.prompts else runs.split.run_id,
        "series_sha256": series.sha256 if runs is None else None,
        "property": series.varied.name,
        "unit": series.varied.unit,
    }
    return new_run(
        RunKind.CAPTURE,
        series.base,
        plan.data,
        config=to_store(plan.config) | more,
        fingerprint=plan.fingerprint,
        bos=plan.asked.bos,
        seed=plan.config.seed,
        n_planned=len(series.conditions),
        ckpt=series.source if runs is None else runs.train.ckpt,
        prompt=plan.asked.form,
        out=out,
    )


def _capture(
    engine: Engine, one: _Place, *, plan: _Plan, serving: Serving, shards: Path
) -> _Taken | MorfiError:
    """Writes one checkpoint's residual streams to its folder in `shards`; returns why it cannot be served."""
    try:
        load_s = serving.load(engine, one.checkpoint)
    except MorfiError as error:
        return error
    begun, folder = time.monotonic(), shards / one.condition.id
    try:
        shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{shards}: {error.strerror}; give another --out") from error
    engine.reset_prefix_cache()
    prompts = [prompt.token_ids for prompt in plan.asked.prompts]
    with engine.shards(folder):
        answers = engine.generate(
            prompts,
            Sampling(max_tokens=1),
            serving.progress.advance,
            capture=Capture(plan.config.layers),
        )
    if len(answers) != len(prompts):
        raise MorfiError(f"the engine answered {len(answers)} of {len(prompts)} prompts; nothing is stored")
    span = Span.since(begun)
    return _Taken(load_s, span, file_hashes(folder))
