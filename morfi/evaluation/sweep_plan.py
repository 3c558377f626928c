"""The plan of a sweep: the runs it builds on, the checkpoints, and the questions of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from morfi.conditions.load import load_series
from morfi.conditions.series import Series
from morfi.errors import InputError
from morfi.questions import select
from morfi.questions.exemplars import no_shots
from morfi.questions.prompts import Prompted, prompted
from morfi.questions.question import Question
from morfi.runs.answering import Answering, fingerprint_of
from morfi.runs.options import check_match, check_numbers, option, run_of, sized_here, stored_together
from morfi.store.records import KnowledgeRow, MixtureRow
from morfi.terminal import Progress
from morfi.training.mixtures import given_away

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class SweepConfig:
    """Everything that decides the rows of a sweep; stored with it. `split_run` says what the base knew."""

    ckpts: str = run_of("train")
    split: str = "test"
    limit: int | None = option(
        "At most this many questions of the split, and of Unknown training ones.", None
    )
    match: str = "squad"
    max_tokens: int = 16
    seed: int = 0
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    batch: int = stored_together()

    def __post_init__(self) -> None:
        check_match(self.match)
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

    mix_run: str
    split_run: str


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
    split_of: Mapping[str, str]
    asked: Prompted
    asked_of: Mapping[float | None, Sequence[str]]
    fingerprint: str


def prepare_sweep(config: SweepConfig, store: Store, progress: Progress) -> Plan:
    """The plan of `config`; raises InputError where what it builds on is missing or not as it was."""
    series = load_series(config.ckpts, store, config.dtype, progress)
    base = series.base
    facts = {row.question_id: row for row in store.knowledge(series.lineage.split.run_id)}
    split_of = {question_id: row.split for question_id, row in facts.items()}
    mixed = store.mixtures(series.lineage.mix.run_id)
    if leaks := given_away(mixed, list(facts.values())):
        progress.phase(
            f"{len(leaks)} of the questions that {series.source} trained on are asked in dev or "
            "test too, so accuracies there are too high; run `morfi mix` and `morfi train` again"
        )
    by_level = _questions(config, facts, mixed)
    every = {question.id: question for questions in by_level.values() for question in questions}
    asked = prompted(
        [no_shots(list(every.values()))],
        base,
        config.engine,
        max_tokens=config.max_tokens,
        bos=series.bos,
        progress=progress,
    )
    given = asdict(config) | {"ckpts": series.source}
    stored = SweepRun(**given, mix_run=series.lineage.mix.run_id, split_run=series.lineage.split.run_id)
    decided = asdict(stored) | {"checkpoints": series.content}
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
        split_of=split_of,
        asked=asked,
        asked_of={level: [question.id for question in questions] for level, questions in by_level.items()},
        fingerprint=fingerprint_of(decided, base, series.lineage.data, asked.prompts),
    )


def _questions(
    config: SweepConfig, facts: Mapping[str, KnowledgeRow], mixtures: Sequence[MixtureRow]
) -> dict[float | None, tuple[Question, ...]]:
    """The questions of each level: those of the split, then the Unknown ones of the level's own mixture.

    The base model (None) is asked the Unknown questions of all mixtures. `limit` holds for either group.
    """
    of_split = [row.asked for row in facts.values() if row.split == config.split]
    if not of_split:
        there = ", ".join(sorted({row.split for row in facts.values()}))
        raise InputError(f'the split run asked no questions of "{config.split}"; it has: {there}')
    tested = select(of_split, limit=config.limit, seed=config.seed)
    unknown: dict[float | None, dict[str, Question]] = {None: {}}
    for row in mixtures:
        own = unknown.setdefault(row.level, {})
        if row.category == "Unknown":
            own[row.question_id] = unknown[None][row.question_id] = facts[row.question_id].asked
    return {
        level: (*tested, *select(own.values(), limit=config.limit, seed=config.seed))
        for level, own in unknown.items()
    }
