"""Questions to try on a checkpoint, above all those that fine-tuning cost it, from the newest sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.conditions.condition import Condition, condition_of
from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.serve.http.catalog import Catalog
from morfi.store.records import RunKind, SweepRow

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class Tried:
    """A question, with what the reference and the served checkpoint answered, if a sweep asked them."""

    question: Question
    reference_answer: str | None = None
    answer: str | None = None


def captured_questions(catalog: Catalog) -> list[Tried]:
    """The questions that the find run is about."""
    return [Tried(question) for question in catalog.found.activations.questions]


def lost_questions(catalog: Catalog, served: str) -> list[Tried]:
    """The questions of the newest sweep that M_0 answered right and the checkpoint `served` (an id) wrong.

    M_0 is the checkpoint of the lowest level with the same seed and epoch setting; with the base model
    served, the find run's setting and the lowest seed. Raises InputError where no sweep asked both.
    """
    train_run = catalog.series.source
    if served not in catalog.checkpoints:
        raise InputError(f"{served} is not a checkpoint of {train_run}, so no sweep asked it")
    store, condition = catalog.store, catalog.checkpoints[served]
    rows = {condition_of(row): row for row in newest_sweep(store, train_run)}
    setting = condition.epoch_setting or catalog.found.activations.epochs
    of_setting = [one for one in rows if isinstance(one, Condition) and one.epoch_setting == setting]
    alike = [one for one in of_setting if condition.seed in (None, one.seed)]
    reference = min(alike, key=lambda one: (one.level, one.seed), default=None)
    asked = rows.get(condition)
    if reference is None or asked is None:
        raise InputError(f"no sweep has asked {served} and its M_0 yet; run: morfi sweep --ckpts {train_run}")
    before = {sample["question_id"]: sample for sample in _answers(store, rows[reference])}
    return [
        Tried(_question(sample), before[sample["question_id"]]["answer"], sample["answer"])
        for sample in _answers(store, asked)
        if not sample["correct"] and before.get(sample["question_id"], {}).get("correct")
    ]


def asked_questions(catalog: Catalog) -> list[Question]:
    """The questions of the find run and of the newest sweep."""
    rows = newest_sweep(catalog.store, catalog.series.source)
    asked = [_question(sample) for sample in _answers(catalog.store, rows[0])] if rows else []
    return [*(one.question for one in captured_questions(catalog)), *asked]


def newest_sweep(store: Store, train_run: str) -> list[SweepRow]:
    """The rows of the newest sweep of a train run's checkpoints; none where there is no sweep."""
    found = store.newest_of(RunKind.SWEEP, train_run)
    return [] if found is None else store.sweep(found.run_id)


def known_accuracies(catalog: Catalog) -> dict[str, float]:
    """The share of Known test questions that the newest sweep's checkpoints got right, by id.

    Of all its questions where no split run says which are Known. Seeds of a level count together.
    """
    run = catalog.store.newest_of(RunKind.SWEEP, catalog.series.source)
    if run is None:
        return {}
    by_setting = {
        (one.level, one.epoch_setting): one.accuracy
        for one in catalog.store.sweep_accuracies(run.run_id)
        if catalog.series.lineage is None
        or (one.questions.endswith("Known") and not one.questions.startswith("train"))
    }
    keys = {name: (one.level, one.epoch_setting) for name, one in catalog.checkpoints.items()}
    return {name: by_setting[key] for name, key in keys.items() if key in by_setting}


def _answers(store: Store, one: SweepRow) -> list[dict[str, Any]]:
    """The greedy answers of one checkpoint."""
    return [row for row in store.samples(one.eval_run_id).to_pylist() if row["sample"] == 0]


def _question(sample: Mapping[str, Any]) -> Question:
    names = ("question_id", "relation", "subject", "question", "answers")
    question_id, relation, subject, text, answers = (sample[name] for name in names)
    return Question(question_id, relation, subject, text, tuple(answers))
