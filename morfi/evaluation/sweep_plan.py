"""The plan of a sweep: the runs it builds on, the checkpoints, and the questions of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from morfi.conditions.asking import source_of
from morfi.conditions.load import load_series
from morfi.conditions.series import Series
from morfi.evaluation.how import check_words, wording_of
from morfi.questions import QuestionSet, select
from morfi.questions.exemplars import no_shots
from morfi.questions.prompts import Prompted, prompted
from morfi.questions.question import Question
from morfi.runs.answering import Answering, fingerprint_of
from morfi.runs.options import (
    check_match,
    check_numbers,
    data_of_series,
    option,
    series_of,
    sized_here,
    stored_together,
)
from morfi.runs.settings import to_store
from morfi.store.records import KnowledgeRow, MixtureRow
from morfi.terminal import Progress
from morfi.training.mixtures import given_away

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """Everything that decides the rows of a sweep; stored with it. `split_run` says what the base knew."""

    ckpts: str = series_of()
    data: str | None = data_of_series()
    split: str | None = option("train, dev or test.", None, unset="test, or all of data without splits")
    relations: tuple[str, ...] = ()
    limit: int | None = option(
        "At most this many questions of the split, and of Unknown training ones.", None, unset="all"
    )
    match: str = "squad"
    max_tokens: int = 16
    seed: int = 0
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int = stored_together()
    chat: bool = False
    prompt_template: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        check_match(self.match)
        check_words(chat=self.chat, system=self.system)
        check_numbers(
            {
                "limit": (self.limit, 1),
                "max-tokens": (self.max_tokens, 1),
                "seed": (self.seed, 0),
                "batch": (self.batch, 1),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRun(SweepConfig):
    """The settings that a sweep is stored with."""

    split: str
    mix_run: str | None
    split_run: str | None
    property: str
    unit: str | None


def configure_sweep(given: Mapping[str, Any]) -> SweepConfig:
    """The configuration of the options that were given (those not None)."""
    options = {key: value for key, value in given.items() if value is not None}
    return SweepConfig(**{**sized_here(SweepConfig), **options})


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep made ready: all questions `asked`, and the ids of a level's own (None: the base model)."""

    config: SweepRun
    answering: Answering
    series: Series
    data: QuestionSet
    split_of: Mapping[str, str]
    asked: Prompted
    asked_of: Mapping[float | None, Sequence[str]]
    fingerprint: str


def prepare_sweep(config: SweepConfig, store: Store, progress: Progress) -> Plan:
    """The plan of `config`; raises InputError where what it builds on is missing or not as it was."""
    series = load_series(config.ckpts, store, config.dtype, progress)
    source = source_of(series, store, config.data, config.relations, progress)
    split = source.split(config.split, "test")
    tested = source.chosen(split, config.limit, config.seed)
    by_level: dict[float | None, tuple[Question, ...]]
    by_level = dict.fromkeys([one.level for one in series.conditions], tested)
    split_of = dict.fromkeys((question.id for question in tested), split)
    if series.lineage is not None and source.facts is not None:
        mixed = store.mixtures(series.lineage.mix.run_id)
        _warn_of_leaks(series, mixed, source.facts, progress)
        by_level = _with_unknown(config, tested, source.facts, mixed)
        split_of = {question_id: row.split for question_id, row in source.facts.items()}
    every = {question.id: question for questions in by_level.values() for question in questions}
    asked = prompted(
        [no_shots(list(every.values()))],
        series.base,
        config.engine,
        max_tokens=config.max_tokens,
        match=config.match,
        bos=series.bos,
        progress=progress,
        wording=wording_of(chat=config.chat, system=config.system, prompt_template=config.prompt_template),
    )
    stored = _stored(config, series, split)
    decided = asdict(stored) | {"checkpoints": series.content}
    for in_prompts in ("chat", "prompt_template", "system"):
        del decided[in_prompts]
    if series.lineage is None:
        del decided["ckpts"], decided["data"]  # names of files, whose content decides
    return Plan(
        config=stored,
        answering=Answering(
            max_tokens=config.max_tokens,
            match=config.match,
            batch=config.batch,
            seed=config.seed,
            engine=config.engine,
        ),
        series=series,
        data=source.data,
        split_of=split_of,
        asked=asked,
        asked_of={level: [question.id for question in questions] for level, questions in by_level.items()},
        fingerprint=fingerprint_of(decided, series.base, source.data, asked.prompts),
    )


def _stored(config: SweepConfig, series: Series, split: str) -> SweepRun:
    """The settings that the sweep is stored with."""
    runs = series.lineage
    given = to_store(config) | {"ckpts": series.source, "split": split}
    return SweepRun(
        **given,
        mix_run=None if runs is None else runs.mix.run_id,
        split_run=None if runs is None else runs.split.run_id,
        property=series.varied.name,
        unit=series.varied.unit,
    )


def _warn_of_leaks(
    series: Series, mixed: Sequence[MixtureRow], facts: Mapping[str, KnowledgeRow], progress: Progress
) -> None:
    if leaks := given_away(mixed, list(facts.values())):
        progress.phase(
            f"{len(leaks)} of the questions that {series.source} trained on are asked in dev or "
            "test too, so accuracies there are too high; run `morfi mix` and `morfi train` again"
        )


def _with_unknown(
    config: SweepConfig,
    tested: Sequence[Question],
    facts: Mapping[str, KnowledgeRow],
    mixtures: Sequence[MixtureRow],
) -> dict[float | None, tuple[Question, ...]]:
    """The questions of each level: those of the split, then the Unknown ones of the level's own mixture.

    The base model (None) is asked the Unknown questions of all mixtures. `limit` holds for either group.
    """
    unknown: dict[float | None, dict[str, Question]] = {None: {}}
    for row in mixtures:
        own = unknown.setdefault(row.level, {})
        if row.category == "Unknown":
            own[row.question_id] = unknown[None][row.question_id] = facts[row.question_id].asked
    return {
        level: (*tested, *select(own.values(), limit=config.limit, seed=config.seed))
        for level, own in unknown.items()
    }
